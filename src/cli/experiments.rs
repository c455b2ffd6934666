//! The verbs of the command line about experiments: a thin client of the admin plane. An experiment is a TOML file; the policies of its
//! arms stand in files beside it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client;
use super::slots::{Asked, Out};
use super::table::{aligned, row};

#[derive(Debug, Subcommand)]
pub(super) enum Experiment {
    /// List the experiments
    List {
        /// Only those of this model
        model: Option<String>,
        #[command(flatten)]
        out: Out,
    },
    /// Show an experiment with its customers by group
    Show {
        /// The experiment
        name: String,
        #[command(flatten)]
        out: Out,
    },
    /// Create an experiment: it treats nobody before it starts
    Create {
        /// The TOML file
        file: PathBuf,
        #[command(flatten)]
        asked: Asked,
    },
    /// Start an experiment
    Start(Plain),
    /// Stop an experiment
    Stop(Plain),
    /// Put another experiment of the same name in its place
    Change {
        /// The TOML file
        file: PathBuf,
        /// Apply it even if it moves customers while the experiment runs
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Args)]
pub(super) struct Plain {
    /// The experiment
    name: String,
    #[command(flatten)]
    asked: Asked,
}

impl Experiment {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Experiment::List { model, mut out } => {
                let query = model.map_or(String::new(), |model| format!("?model={model}"));
                let answer = client::get(&out.admin()?, &format!("/v1/experiments{query}"))?;
                out.write(&answer, list)
            }
            Experiment::Show { name, mut out } => {
                let answer = client::get(&out.admin()?, &format!("/v1/experiments/{name}"))?;
                out.write(&answer, show)
            }
            Experiment::Create { file, asked } => {
                let (model, experiment) = read(&file)?;
                let mut body = json!({ "experiment": experiment });
                if let Some(model) = model {
                    body["model"] = model;
                }
                asked.post("/v1/experiments", body, done)
            }
            Experiment::Start(Plain { name, asked }) => {
                asked.post(&format!("/v1/experiments/{name}/start"), json!({}), done)
            }
            Experiment::Stop(Plain { name, asked }) => {
                asked.post(&format!("/v1/experiments/{name}/stop"), json!({}), done)
            }
            Experiment::Change { file, force, asked } => {
                let (_, experiment) = read(&file)?;
                let name = experiment["name"].as_str().with_context(|| format!("{}: no name", file.display()))?;
                let path = format!("/v1/experiments/{name}/change");
                asked.post(&path, json!({"experiment": experiment, "force": force}), done)
            }
        }
    }
}

/// The model and the experiment of a file; each `policy_file` of an arm gives way to the document in it.
fn read(file: &Path) -> anyhow::Result<(Option<Value>, Value)> {
    let text = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let parsed: toml::Table =
        text(file)?.parse().with_context(|| format!("the experiment {} is wrong", file.display()))?;
    let mut experiment = value(toml::Value::Table(parsed));
    let model = experiment.as_object_mut().and_then(|experiment| experiment.remove("model"));
    for arm in experiment["arms"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(Value::String(path)) = arm.remove("policy_file") {
            let beside = file.parent().unwrap_or(Path::new("")).join(path);
            arm.insert("policy".to_owned(), json!(text(&beside)?));
        }
    }
    Ok((model, experiment))
}

fn value(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(self::value).collect(),
        toml::Value::Table(table) => {
            table.into_iter().map(|(key, value)| (key, self::value(value))).collect::<serde_json::Map<_, _>>().into()
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn percent(share: &Value) -> String {
    format!("{}%", (share.as_f64().unwrap_or(0.0) * 1e6).round() / 1e4)
}

fn list(answer: &Value) -> String {
    let head = row(&["experiment", "model", "state", "arms", "from", "to", "owner"]);
    let line = |one: &Value| {
        let arms = one["arms"].as_array().into_iter().flatten();
        let mut arms: Vec<String> =
            arms.map(|arm| format!("{} {}", text(&arm["name"]), percent(&arm["share"]))).collect();
        if one["holdout"].as_f64().is_some_and(|share| share > 0.0) {
            arms.push(format!("holdout {}", percent(&one["holdout"])));
        }
        let [name, model, state, from, to, owner] =
            ["name", "model", "state", "from", "to", "owner"].map(|name| text(&one[name]));
        vec![name, model, state, arms.join(", "), from, to, owner]
    };
    let lines = answer["experiments"].as_array().into_iter().flatten().map(line);
    aligned(std::iter::once(head).chain(lines).collect())
}

fn show(one: &Value) -> String {
    let mut out = format!(
        "{} on {}, {}\n{}\n\n",
        text(&one["name"]),
        text(&one["model"]),
        text(&one["state"]),
        text(&one["hypothesis"])
    );
    let count = |value: &Value| value.as_u64().map_or("-".to_owned(), |count| count.to_string());
    let mut groups = vec![row(&["group", "share", "customers", "what"])];
    for arm in one["arms"].as_array().into_iter().flatten() {
        let what = match (arm["intervention"].as_str(), arm["policy"].as_object()) {
            (Some(action), _) => format!("intervention {action}"),
            (None, Some(policy)) => format!("policy {} {}", text(&policy["name"]), text(&policy["version"])),
            (None, None) => "the policy in force".to_owned(),
        };
        groups.push(vec![text(&arm["name"]), percent(&arm["share"]), count(&arm["customers"]), what]);
    }
    groups.push(vec![
        "holdout".to_owned(),
        percent(&one["holdout"]),
        count(&one["holdout_customers"]),
        "nothing".to_owned(),
    ]);
    out += &aligned(groups);
    if let Some(ratio) = one["sample_ratio"].as_object() {
        let judged = match ratio["mismatch"] == true {
            true => "customers came in other shares than they were assigned: do not trust it",
            false => "nothing speaks against the shares",
        };
        let e_value = ratio["e_value"].as_f64().map_or("beyond all numbers".to_owned(), |value| format!("{value:.3}"));
        out += &format!("sample ratio: e-value {e_value}, {judged}\n");
    }
    let stamps = ["created", "started", "changed", "ended"].into_iter().filter(|name| one[*name].is_object());
    let stamps =
        stamps.map(|name| row(&[name, &text(&one[name]["at"]), &text(&one[name]["by"]), &text(&one[name]["why"])]));
    let ends = format!("from {} to {}\n", text(&one["from"]), text(&one["to"]));
    out + "\n" + &ends + &aligned(stamps.collect())
}

fn done(answer: &Value) -> String {
    let repeated = if answer["repeated"] == true { "this was done before; nothing was done now\n" } else { "" };
    let experiment = if answer["experiment"].is_object() { show(&answer["experiment"]) } else { String::new() };
    format!("{}\n{repeated}\n{experiment}", text(&answer["result"]))
}
