//! The verb `report`: the monthly review as one HTML file that needs nothing else, from what a running service says of its last 30 days.
//! Figures are read in `figure`, explained in `text`, drawn in `plot`, put together in `review` and `money`; `markup` writes all of it.

mod figure;
mod markup;
mod money;
mod plot;
mod review;
mod text;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use self::markup::{Markup, words};
use self::review::{Answers, day};
use super::door::{Called, Door};
use super::{client, write_out};

/// The window of a review.
const WINDOW: &str = "30d";

/// What to review, and where to write it.
#[derive(Debug, Args)]
pub(super) struct Report {
    /// The model [default: all]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The file [default: mainstay-report-YYYY-MM.html, by the end of the window]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    called: Called,
}

impl Report {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let door = self.called.admin()?;
        let mut listed = ask(&door, "/v1/slots")?["models"].as_array().cloned().unwrap_or_default();
        if let Some(model) = &self.model {
            listed.retain(|slots| slots["model"] == **model);
            // The service knows best what was meant instead.
            if listed.is_empty() {
                client::get(&door, &format!("/v1/slots/{model}"))?;
            }
        }
        let answers = listed.into_iter().map(|slots| asked(&door, slots)).collect::<anyhow::Result<Vec<_>>>()?;
        let to =
            answers.first().context("no model is in service: there is nothing to review")?.kpis["basis"]["to"].clone();
        let month = day(&to).get(..7).unwrap_or("undated");
        let path = self.out.unwrap_or_else(|| PathBuf::from(format!("mainstay-report-{month}.html")));
        std::fs::write(&path, page(&answers, &to)).with_context(|| format!("cannot write {}", path.display()))?;
        write_out(&format!("{}\n", path.display()))
    }
}

fn ask(door: &Door, path: &str) -> anyhow::Result<Value> {
    serde_json::from_str(&client::get(door, path)?).context("the service did not answer with JSON")
}

/// All that is told of the model whose slots are `slots`.
fn asked(door: &Door, slots: Value) -> anyhow::Result<Answers> {
    let model = slots["model"].as_str().context("the service lists a model without a name")?;
    let insight = |what: &str| ask(door, &format!("/v1/insight/{what}?model={model}&window={WINDOW}"));
    let (kpis, quality) = (insight("kpis")?, insight("quality")?);
    let (drift, fairness) = (insight("drift")?, insight("fairness")?);
    let experiments = ask(door, &format!("/v1/experiments?model={model}"))?;
    Ok(Answers { slots, kpis, quality, drift, fairness, experiments })
}

/// The whole file.
fn page(answers: &[Answers], to: &Value) -> String {
    let lead = format!(
        "The 30 days that end on {}, as the service measured them. Every figure stands with its 95% interval; what cannot be told yet is said, and is no zero.",
        day(to)
    );
    let mut body: Vec<Markup> = vec![words("h1", "", "Churn decisions: monthly review"), words("p", "soft", lead)];
    body.extend(answers.iter().enumerate().map(|(at, answers)| answers.review(at == 0)));
    body.push(words("p", "soft", "Made by mainstay report. The figures are those of /v1/insight on the admin plane; how each is computed stands in its contract."));
    markup::page(&format!("Monthly review {}", day(to)), body)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_said_and_never_a_zero() {
        let hostile = "<script>x</script>";
        let experiments = json!({"experiments": [{"name": hostile, "hypothesis": hostile, "state": "planned"}]});
        let answers = Answers {
            slots: json!({"model": hostile}),
            kpis: Value::Null,
            quality: Value::Null,
            drift: json!({"versions": [{"version": hostile, "n": 0}]}),
            fairness: Value::Null,
            experiments,
        };
        let page = page(&[answers], &Value::Null);
        assert!(!page.contains("<script"), "escaped");
        assert_eq!(page.matches("&lt;script&gt;").count(), 4);
        // 9 figures of the tree, 4 of them gains that say so again, 4 rates of churn, and 7 of quality.
        assert_eq!(page.matches(figure::MISSING).count(), 24);
        for claimed in ["0.0%", "0.000", "0.00"] {
            assert!(!page.contains(&format!(">{claimed}<")), "{claimed}");
        }
        for tile in ["Money", "Quality of the scores", "Drift", "Fairness"] {
            assert!(page.contains(&format!("{tile}: <span class=\"state open\">Not known yet</span>")), "{tile}");
        }
    }
}
