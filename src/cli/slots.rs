//! The verbs of the command line about slots, rollouts and policies: a thin client of the admin plane, with tables for people.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::door::{Called, Door};
use super::table::{aligned, comparison, flags, row, simulation, table};
use super::{client, write_out};

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The model [default: all]
    model: Option<String>,
    #[command(flatten)]
    out: Out,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// The model
    model: String,
    /// The most moves to show
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    out: Out,
}

#[derive(Debug, Args)]
pub(super) struct Stage {
    /// The model
    model: String,
    /// The version: its bundle stands in models.dir
    version: String,
    /// Replay this many recent decisions through both models and report the differences
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    replay: usize,
    /// Stage it even if it would refuse requests that are accepted now
    #[arg(long)]
    allow_breaking: bool,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The model
    model: String,
    /// Promote even if its rollout has not passed its last step
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Args)]
pub(super) struct Plain {
    /// The model
    model: String,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
pub(super) enum Rollout {
    /// Put the staged model under trial
    Start {
        /// The model
        model: String,
        /// Only score a sample beside the champion
        #[arg(long)]
        shadow: bool,
        /// Promote it without a person once it has passed its last step
        #[arg(long)]
        promote: bool,
        /// Other steps: SHARE:SECONDS, such as 0.01:600,0.25:600,1:600
        #[arg(long, value_delimiter = ',', value_parser = step)]
        steps: Vec<(f64, u64)>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Stay at this step; the guardrails stay on
    Pause(Plain),
    /// Continue a paused rollout
    Resume(Plain),
    /// Go to the next step, whatever the verdict
    Advance(Plain),
    /// End it: the challenger loses its share
    Abort(Plain),
    /// Agree to a promotion
    Approve {
        /// The model
        model: String,
        /// Your role, one of rollouts.approvals
        role: String,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Report what a policy would have done with recorded decisions, beside the policy in force; nothing changes
    Simulate {
        /// The model
        model: String,
        /// The policy document
        file: PathBuf,
        /// How many recent decisions to use [default: 1000, or all of the given time]
        #[arg(long)]
        last: Option<usize>,
        /// Made at or after this time, RFC 3339
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Made before this time, RFC 3339
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
        /// Another budget than that of the document, such as 50000/month
        #[arg(long, value_name = "AMOUNT/PERIOD", value_parser = budget)]
        budget: Option<(f64, String)>,
        /// What the value is measured by: retained_value, retained, converted, revenue or margin
        #[arg(long)]
        reward: Option<String>,
        #[command(flatten)]
        out: Out,
    },
    /// Put a policy into force
    Apply {
        /// The model
        model: String,
        /// The policy document
        file: PathBuf,
        #[command(flatten)]
        asked: Asked,
    },
    /// Go back to the policy before
    Undo(Plain),
}

/// Who asks, and why.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Your name, for the record [default: the holder of the API key, or $USER without one]
    #[arg(long)]
    by: Option<String>,
    /// The reason, for the record
    #[arg(long, default_value = "")]
    why: String,
    /// A key of your choice: the same request with the same key is done only once
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    out: Out,
}

#[derive(Debug, Args)]
pub(super) struct Out {
    /// Print the JSON answer of the service
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    called: Called,
}

fn step(text: &str) -> Result<(f64, u64), String> {
    let expected = || "expected SHARE:SECONDS, such as 0.05:600".to_owned();
    let (share, seconds) = text.split_once(':').ok_or_else(expected)?;
    Ok((share.trim().parse().map_err(|_| expected())?, seconds.trim().parse().map_err(|_| expected())?))
}

fn budget(text: &str) -> Result<(f64, String), String> {
    let expected = || "expected AMOUNT/PERIOD, such as 50000/month".to_owned();
    let (amount, period) = text.split_once('/').ok_or_else(expected)?;
    Ok((amount.trim().parse().map_err(|_| expected())?, period.trim().to_owned()))
}

impl Out {
    pub(super) fn admin(&mut self) -> anyhow::Result<Door> {
        std::mem::take(&mut self.called).admin()
    }

    pub(super) fn write(&self, answer: &str, text: impl Fn(&Value) -> String) -> anyhow::Result<()> {
        if self.json {
            return write_out(&format!("{}\n", answer.trim_end()));
        }
        write_out(&text(&serde_json::from_str(answer).context("the service did not answer with JSON")?))
    }
}

impl Show {
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let door = self.out.admin()?;
        let answer = client::get(&door, "/v1/slots")?;
        let mut listed: Value = serde_json::from_str(&answer).context("the service did not answer with JSON")?;
        if let (Some(model), Some(models)) = (&self.model, listed["models"].as_array_mut()) {
            models.retain(|slots| slots["model"] == **model);
            // The service knows best what was meant instead.
            if models.is_empty() {
                client::get(&door, &format!("/v1/slots/{model}"))?;
            }
        }
        self.out.write(&listed.to_string(), |answer| {
            let models = answer["models"].as_array().into_iter().flatten();
            models.map(table).collect::<Vec<_>>().join("\n")
        })
    }
}

impl History {
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let path = format!("/v1/slots/{}/history?limit={}", self.model, self.limit);
        let answer = client::get(&self.out.admin()?, &path)?;
        self.out.write(&answer, |answer| {
            let head = row(&["record", "at", "verb", "by", "result", "why"]);
            let moves = answer["moves"].as_array().into_iter().flatten();
            let lines = moves.map(|made| {
                let seq = made["seq"].to_string();
                let text = |name: &str| made[name].as_str().unwrap_or_default();
                row(&[&seq, text("at"), text("verb"), text("by"), text("result"), text("why")])
            });
            aligned(std::iter::once(head).chain(lines).collect())
        })
    }
}

impl Stage {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let body = json!({"version": self.version, "replay_last": self.replay, "allow_breaking": self.allow_breaking});
        self.asked.ask(&self.model, "stage", body)
    }
}

impl Promote {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.asked.ask(&self.model, "promote", json!({"force": self.force}))
    }
}

impl Plain {
    pub(super) fn run(self, verb: &str) -> anyhow::Result<()> {
        self.asked.ask(&self.model, verb, json!({}))
    }
}

impl Rollout {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Rollout::Start { model, shadow, promote, steps, asked } => {
                let exposure = if shadow { "shadow" } else { "canary" };
                let mut body = json!({"mode": exposure});
                if promote {
                    body["promote"] = json!(true);
                }
                if !steps.is_empty() {
                    let step = |(share, bake_secs): &(f64, u64)| json!({"exposure": exposure, "share": share, "bake_secs": bake_secs});
                    body["steps"] = steps.iter().map(step).collect();
                }
                asked.ask(&model, "start", body)
            }
            Rollout::Pause(plain) => plain.run("pause"),
            Rollout::Resume(plain) => plain.run("resume"),
            Rollout::Advance(plain) => plain.run("advance"),
            Rollout::Abort(plain) => plain.run("abort"),
            Rollout::Approve { model, role, asked } => asked.ask(&model, "approve", json!({"role": role})),
        }
    }
}

impl Policy {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let read = |file: &Path| {
            std::fs::read_to_string(file).with_context(|| format!("cannot read the policy {}", file.display()))
        };
        match self {
            Policy::Simulate { model, file, last, from, to, budget, reward, mut out } => {
                let mut body = json!({"model": model, "document": read(&file)?});
                let budget = budget.map(|(amount, period)| json!({"amount": amount, "period": period}));
                let asked = [
                    ("last", last.map(Value::from)),
                    ("from", from.map(Value::from)),
                    ("to", to.map(Value::from)),
                    ("budget", budget),
                    ("reward", reward.map(Value::from)),
                ];
                for (name, value) in asked {
                    if let Some(value) = value {
                        body[name] = value;
                    }
                }
                let answer = client::post(&out.admin()?, "/v1/policies:simulate", &body.to_string(), None)?;
                out.write(&answer, simulation)
            }
            Policy::Apply { model, file, asked } => {
                asked.ask(&model, "apply_policy", json!({"document": read(&file)?}))
            }
            Policy::Undo(plain) => plain.run("undo_policy"),
        }
    }
}

impl Asked {
    /// Asks for what `body` says, and tells the answer as `text`.
    pub(super) fn post(mut self, path: &str, mut body: Value, text: impl Fn(&Value) -> String) -> anyhow::Result<()> {
        let door = self.out.admin()?;
        let user = || std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
        // With a key the service knows by itself.
        if let Some(by) = self.by.or_else(|| door.key.is_none().then(user)) {
            body["by"] = json!(by);
        }
        body["why"] = json!(self.why);
        let answer = client::post(&door, path, &body.to_string(), self.key.as_deref())?;
        self.out.write(&answer, text)
    }

    fn ask(self, model: &str, verb: &str, body: Value) -> anyhow::Result<()> {
        self.post(&format!("/v1/slots/{model}/{verb}"), body, |done| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let mut lines = vec![text(&done["result"])];
            if done["repeated"] == true {
                lines.push("this was done before; nothing was done now".to_owned());
            }
            lines.extend(done["notes"].as_array().into_iter().flatten().map(text));
            if done["replay"].is_object() {
                lines.push(comparison(&done["replay"]));
            }
            if done["compliance"].is_object() {
                lines.push(flags(&done["compliance"]));
            }
            format!("{}\n\n{}", lines.join("\n"), table(&done["slots"]))
        })
    }
}
