//! The review of one model: its sections, from the answers of the service to marked-up text. Nothing is measured here.

use serde_json::Value;

use super::figure::{Figure, Unit, grouped};
use super::markup::{Markup, tag, text, words};
use super::plot::{Mark, Row, Tone, intervals};
use super::text::{self as said, Said};

/// Features of a plot, the worst first.
const FEATURES_MAX: usize = 10;
/// Experiments of a table, the last first.
const EXPERIMENTS_MAX: usize = 20;

/// What the service says of a model.
pub(super) struct Answers {
    pub(super) slots: Value,
    pub(super) kpis: Value,
    pub(super) quality: Value,
    pub(super) drift: Value,
    pub(super) fairness: Value,
    pub(super) experiments: Value,
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn string(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// The day of a moment.
pub(super) fn day(moment: &Value) -> &str {
    moment.as_str().and_then(|moment| moment.get(..10)).unwrap_or("-")
}

pub(super) fn heading(title: &str, words_of_it: &str) -> Vec<Markup> {
    vec![words("h3", "", title), words("p", "soft", words_of_it)]
}

/// A figure, or some of a kind: what it is, what it means, the plot.
pub(super) fn figure(title: &str, sentences: &[&str], plot: Markup) -> Markup {
    let sentences = sentences.join(" ");
    let attributes = [("class", "figure")];
    tag("div", &attributes, [words("h4", "", title), words("p", "", sentences.trim()), plot])
}

impl Answers {
    pub(super) fn model(&self) -> &str {
        string(&self.slots["model"])
    }

    /// The whole review.
    pub(super) fn review(&self, is_first: bool) -> Markup {
        let mut parts = vec![words("h2", "", self.model()), words("p", "soft", self.basis())];
        parts.extend(self.warning());
        parts.push(self.glance());
        parts.push(self.in_service());
        parts.extend(self.money());
        parts.extend(self.quality());
        parts.extend(self.drift());
        parts.extend(self.fairness());
        parts.extend(self.experiments());
        tag("section", &[("class", if is_first { "model first" } else { "model" })], parts)
    }

    pub(super) fn kpi(&self, name: &str) -> &Value {
        list(&self.kpis["overall"]["tree"]).iter().find(|kpi| kpi["name"] == name).unwrap_or(&Value::Null)
    }

    pub(super) fn currency(&self) -> &str {
        self.kpis["budget"]["currency"].as_str().unwrap_or_default()
    }

    fn champion(&self) -> Option<&Value> {
        list(&self.drift["versions"]).iter().find(|version| version["role"] == "champion")
    }

    fn basis(&self) -> String {
        let basis = &self.kpis["basis"];
        let count = |value: &Value| grouped(value.as_f64().unwrap_or(0.0), 0);
        let mut text = format!(
            "{} customers and {} decisions in the window. Whether a customer left is known {} days after the decision: churn and its reduction are of customers who were decided on before then.",
            count(&self.kpis["overall"]["customers"]),
            count(&self.kpis["overall"]["decisions"]),
            grouped(basis["maturity_days"].as_f64().unwrap_or(0.0), 0),
        );
        if let Some(share) = basis["sampled"].as_f64().filter(|share| *share < 1.0) {
            let share = Unit::Share.write(share);
            text += &format!(
                " Only {share} of the customers were measured, chosen by chance: sums such as the spend are of these alone."
            );
        }
        if basis["records_behind"].as_f64().is_some_and(|behind| behind > 0.0) {
            text += &format!(" {} records were not measured yet.", count(&basis["records_behind"]));
        }
        if basis["left_out"].as_f64().is_some_and(|left_out| left_out > 0.0) {
            text += &format!(" {} decisions were left out.", count(&basis["left_out"]));
        }
        text
    }

    /// Said before anything is compared, since then nothing that is compared holds.
    fn warning(&self) -> Option<Markup> {
        let ratio = &self.kpis["overall"]["holdout_ratio"];
        let warning = "Do not trust the comparisons of this review: not as many customers are held out as should be, so something else than chance decides who is. Find out what it is first.";
        (ratio["mismatch"] == true).then(|| words("p", "warning", warning))
    }

    fn glance(&self) -> Markup {
        let of = |name: &str| Figure::of(&self.kpi(name)["estimate"]);
        let quality = &self.quality["overall"];
        let (auc, slope) = (Figure::of(&quality["auc"]), Figure::of(&quality["calibration_slope"]));
        let tiles = [
            ("Money", said::money(of("net_value_saved").as_ref(), of("churn_reduction").as_ref(), self.currency())),
            ("Quality of the scores", said::quality(auc.as_ref(), slope.as_ref())),
            ("Drift", said::drifting(self.champion())),
            ("Fairness", said::fairness(list(&self.fairness["overall"]["offers"]))),
        ];
        let tile = |(name, Said { tone, state, sentence }): (&str, Said)| {
            let head = [text(format!("{name}: ")), words("span", &format!("state {}", tone.class()), state)];
            tag(
                "div",
                &[("class", &format!("tile {}", tone.class()))],
                [tag("div", &[], head), words("p", "", sentence)],
            )
        };
        tag("div", &[("class", "tiles")], tiles.map(tile))
    }

    fn in_service(&self) -> Markup {
        let filled = list(&self.slots["slots"]).iter().filter(|slot| slot["version"].is_string());
        let models = filled.map(|slot| {
            let share = Unit::Share.write(slot["share"].as_f64().unwrap_or(0.0));
            let (version, role) = (string(&slot["version"]), string(&slot["role"]));
            format!("version {version} ({role} since {}, answers {share} of the customers)", day(&slot["since"]))
        });
        let policy = &self.slots["policy"];
        let mut told = format!(
            "In service: {}; policy {} {}.",
            models.collect::<Vec<_>>().join("; "),
            string(&policy["name"]),
            string(&policy["version"])
        );
        if self.slots["rollout"].is_object() {
            let rollout = &self.slots["rollout"];
            let (state, verdict) = (string(&rollout["state"]), string(&rollout["verdict"]));
            told += &format!(
                " A rollout is {state} at step {} of {}; its guardrails say: {verdict}.",
                rollout["step"],
                list(&rollout["steps"]).len()
            );
        }
        words("p", "", told)
    }

    fn quality(&self) -> Vec<Markup> {
        let quality = &self.quality["overall"];
        let of = |name: &str| Figure::of(&quality[name]);
        let count = |name: &str| quality[name].as_f64().unwrap_or(0.0);
        let whose = match quality["on_holdout"] == true {
            true => "held out of interventions, so that nothing was done to make a score wrong",
            false => {
                "all customers, since nobody is held out: interventions have changed who leaves, which makes scores look worse than they are"
            }
        };
        let mut out = heading(
            "Quality of the scores",
            &format!(
                "How well scores told who would leave. Of {} customers it is known whether they left, and {} did. They are {whose}.",
                grouped(count("labelled"), 0),
                grouped(count("churned"), 0)
            ),
        );
        let base = (count("labelled") > 0.0).then(|| count("churned") / count("labelled"));
        let auc = of("auc");
        let ranking = auc.as_ref().map_or("Whether those who left had the higher scores.".to_owned(), said::ranking);
        let rows = [Row::new("AUC", auc)];
        out.push(figure(
            "Ranking",
            &[&ranking, "0.5 would be a coin, 1 would be without error."],
            intervals("AUC", &Unit::Number, &rows, &[Mark::new(0.5, "a coin")]),
        ));
        let rows = [
            Row::new("who left", of("precision_at_20")),
            Row::new("this window, estimated", of("precision_at_20_delay_corrected")),
            Row::new("as the scores foretell", of("precision_at_20_expected")),
        ];
        let means = said::precision(rows[0].figure.as_ref(), base);
        let marks: Vec<Mark> = base.map(|base| Mark::new(base, "picked by chance")).into_iter().collect();
        out.push(figure(
            "Precision at the top",
            &[&means],
            intervals("Precision of the top 20%", &Unit::Share, &rows, &marks),
        ));
        let slope = of("calibration_slope");
        let means = said::calibration(slope.as_ref());
        out.push(figure(
            "Calibration: slope",
            &[means],
            intervals("Slope", &Unit::Number, &[Row::new("slope", slope)], &[Mark::new(1.0, "as it should be")]),
        ));
        let means = "0 at best. Over it, more customers leave than the scores say; under it, fewer.";
        let intercept = Row::new("intercept", of("calibration_intercept"));
        out.push(figure(
            "Calibration: level",
            &[means],
            intervals("Intercept", &Unit::Number, &[intercept], &[Mark::new(0.0, "as it should be")]),
        ));
        let mut means = "The mean squared error of a score as a probability: 0 would be without error.".to_owned();
        if let Some(base) = base {
            means += &format!(
                " Saying {} of everybody would have {}.",
                Unit::Share.write(base),
                Unit::Number.write(base * (1.0 - base))
            );
        }
        if let Some(ece) = quality["ece"].as_f64() {
            means += &format!(
                " In ten groups of like scores, the share who left was off by {} on average.",
                Unit::Share.write(ece)
            );
        }
        out.push(figure(
            "Error",
            &[&means],
            intervals("Brier score", &Unit::Number, &[Row::new("Brier score", of("brier"))], &[]),
        ));
        out
    }

    fn drift(&self) -> Vec<Markup> {
        let mut out = heading(
            "Drift",
            "How far customers and scores are from those the model learned from (population stability index): under 0.1 is little, over 0.25 is much. The grey band is what chance alone seldom exceeds; a bar inside it means nothing.",
        );
        for version in list(&self.drift["versions"]) {
            let n = version["n"].as_f64().unwrap_or(0.0);
            let title = format!("Version {} ({})", string(&version["version"]), string(&version["role"]));
            let said = said::drifting(Some(version));
            if n == 0.0 {
                out.push(figure(&title, &[&said.sentence], Markup::default()));
                continue;
            }
            let mut counted = format!("Of {} requests.", grouped(n, 0));
            let (aged, stale) = (version["aged"].as_u64().unwrap_or(0), version["stale"].as_u64().unwrap_or(0));
            if aged > 0 {
                let share = Unit::Share.write(stale as f64 / aged as f64);
                counted +=
                    &format!(" {share} of those that say how old their features are had features older than a day.");
            }
            let features = list(&version["features"]);
            if features.len() > FEATURES_MAX {
                counted += &format!(" The {FEATURES_MAX} features that moved most, of {}.", features.len());
            }
            let mut rows = vec![distance("the score", &version["score"])];
            rows.extend(features.iter().take(FEATURES_MAX).map(|one| distance(string(&one["feature"]), one)));
            let marks = [Mark::new(0.1, "little"), Mark::new(0.25, "much")];
            out.push(figure(&title, &[&said.sentence, &counted], intervals(&title, &Unit::Number, &rows, &marks)));
        }
        out
    }

    fn fairness(&self) -> Vec<Markup> {
        let mut out = heading(
            "Fairness",
            "How often each group is offered something, by how often the best placed group is. Under 0.8 (four fifths) is the usual sign of a disadvantage. Customers who are held out by chance do not count.",
        );
        let overall = &self.fairness["overall"];
        let offers = list(&overall["offers"]);
        if offers.is_empty() {
            out.push(words("p", "", said::fairness(offers).sentence));
        }
        for attribute in offers {
            out.push(groups(attribute, "parity", "Offers by", ""));
        }
        let known = |attribute: &&Value| {
            list(&attribute["groups"]).iter().any(|group| group["true_positive_rate_ratio"].is_object())
        };
        for attribute in list(&overall["matured"]).iter().filter(known) {
            let means = "The same of those alone who then left: whether they were reached as often in every group.";
            out.push(groups(attribute, "true_positive_rate_ratio", "Of those who left, offers by", means));
        }
        out
    }

    fn experiments(&self) -> Vec<Markup> {
        let found = list(&self.experiments["experiments"]);
        if found.is_empty() {
            return Vec::new();
        }
        let mut out = heading("Experiments", "What is compared on shares of the customers.");
        let cells = |name: &'static str, cells: &[&str]| tag("tr", &[], cells.iter().map(|cell| words(name, "", cell)));
        let rows = found.iter().rev().take(EXPERIMENTS_MAX).map(|one| {
            let arms = list(&one["arms"]).iter();
            let arms = arms.map(|arm| {
                format!("{} {}", string(&arm["name"]), Unit::Share.write(arm["share"].as_f64().unwrap_or(0.0)))
            });
            let arms = arms.collect::<Vec<_>>().join(", ");
            let when = format!("{} to {}", day(&one["from"]), day(&one["to"]));
            cells("td", &[string(&one["name"]), string(&one["state"]), string(&one["hypothesis"]), &arms, &when])
        });
        let head = cells("th", &["Name", "State", "What is expected", "Arms", "When"]);
        out.push(tag("table", &[], std::iter::once(head).chain(rows)));
        out
    }
}

/// How far something is from training.
fn distance(name: &str, found: &Value) -> Row {
    let (tone, verdict) = said::drift(string(&found["verdict"]));
    let n = found["n"].as_u64();
    let value = found["psi"].as_f64().filter(|_| n != Some(0));
    let told = value.map(|psi| format!("{}, {verdict}", Unit::Number.write(psi)));
    let chance = found["critical"].as_f64();
    let note = Some(told.unwrap_or_else(|| verdict.to_owned()));
    Row { bar: true, tone, chance, note, ..Row::new(name, value.map(Figure::exact)) }
}

/// The groups of an attribute, by the ratio of that name.
fn groups(attribute: &Value, ratio: &str, title: &str, means: &str) -> Markup {
    let mut reference = String::new();
    let rows: Vec<Row> = list(&attribute["groups"])
        .iter()
        .map(|group| {
            let name = string(&group["group"]);
            let label = format!("{name} ({})", grouped(group["customers"].as_f64().unwrap_or(0.0), 0));
            if group["reference"] == true {
                let rate = if ratio == "parity" { "selection_rate" } else { "true_positive_rate" };
                let rate = group[rate].as_f64().map_or("-".to_owned(), |rate| Unit::Share.write(rate));
                reference = format!("Compared with {name}, of whom {rate} were offered something.");
                let note = Some("1 (the others by this one)".to_owned());
                return Row { note, ..Row::new(label, Some(Figure::exact(1.0))) };
            }
            let found = Figure::of(&group[ratio]);
            let tone = match (ratio, group["verdict"].as_str()) {
                ("parity", Some(verdict)) => said::parity(verdict).0,
                _ => Tone::Plain,
            };
            Row { tone, ..Row::new(label, found) }
        })
        .collect();
    let mut verdicts = Vec::new();
    for group in list(&attribute["groups"]).iter().filter(|_| ratio == "parity") {
        if let Some(verdict) = group["verdict"].as_str() {
            verdicts.push(format!("{}: {}.", string(&group["group"]), said::parity(verdict).1));
        }
    }
    let mut left_out = String::new();
    for (name, why) in [("rest", "in groups that are too small to name"), ("unknown", "whose group is not known")] {
        if let Some(count) = attribute[name].as_f64().filter(|count| *count > 0.0) {
            left_out += &format!("{} customers {why}. ", grouped(count, 0));
        }
    }
    let title = format!("{title} {}", string(&attribute["attribute"]));
    let plot = intervals(&title, &Unit::Number, &rows, &[Mark::new(0.8, "four fifths")]);
    figure(&title, &[means, &reference, &verdicts.join(" "), &left_out], plot)
}
