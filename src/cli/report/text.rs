//! What figures mean, in sentences for readers who are not engineers: each a pure function of the figure and of what it is held against.

use serde_json::Value;

use super::figure::{Figure, MISSING, Unit, grouped};
use super::plot::Tone;

/// A verdict in a word or two, with a sentence.
pub(super) struct Said {
    pub(super) tone: Tone,
    pub(super) state: &'static str,
    pub(super) sentence: String,
}

impl Said {
    fn new(tone: Tone, state: &'static str, sentence: impl Into<String>) -> Self {
        Self { tone, state, sentence: sentence.into() }
    }
}

/// How figures of the tree are called, and what each means.
pub(super) fn meaning(name: &str) -> (&'static str, &'static str) {
    match name {
        "net_value_saved" => {
            ("Net value saved", "What was not lost because customers stayed, less what the interventions cost.")
        }
        "value_saved" => ("Value saved", "What was not lost because customers stayed, before costs."),
        "cost_of_interventions" => {
            ("Cost of interventions", "What was spent on the customers whose value this compares. An exact sum.")
        }
        "churn_reduction" => {
            ("Churn reduction", "Of the customers who would have left without interventions, the share who stayed.")
        }
        "customers_kept" => ("Customers kept", "How many customers stayed who would have left without interventions."),
        "conversion_rate" => ("Conversion", "Of those who were offered something, the share who took it."),
        "revenue_per_order" => ("Revenue per order", "What an order of these customers brought on average."),
        "cost_per_decision" => {
            ("Cost per decision", "What a decision cost on average: offers and contacts, over all customers.")
        }
        "spend" => ("Spend", "What offers and contacts of the window cost together. An exact sum."),
        _ => ("", ""),
    }
}

/// Whether more than zero of it is surely good: then its interval is held against zero.
pub(super) fn is_gain(name: &str) -> bool {
    matches!(name, "net_value_saved" | "value_saved" | "churn_reduction" | "customers_kept")
}

/// What is to be made of a gain.
pub(super) fn gain(figure: Option<&Figure>) -> Said {
    match figure {
        None => Said::new(Tone::Open, "Not known yet", format!("There are {MISSING} to compare.")),
        Some(figure) if figure.low > 0.0 => {
            Said::new(Tone::Good, "A gain", "All of its interval is above zero: chance alone does not explain it.")
        }
        Some(figure) if figure.high < 0.0 => {
            Said::new(Tone::Bad, "A loss", "All of its interval is below zero: chance alone does not explain it.")
        }
        Some(_) => Said::new(
            Tone::Open,
            "Cannot be told yet",
            "Its interval holds zero: it may be a gain or a loss, and more customers are needed to tell.",
        ),
    }
}

/// How a figure of the tree stands to its target. `None` without a target.
pub(super) fn standing(kpi: &Value, unit: &Unit) -> Option<Said> {
    let target = kpi["target"].as_f64()?;
    let side = if kpi["name"] == "cost_per_decision" { "at most" } else { "at least" };
    let aim = format!("The target is {side} {}", unit.write(target));
    Some(match kpi["standing"].as_str() {
        Some("met") => Said::new(Tone::Good, "Met", format!("{aim}: it is met.")),
        Some("missed") => Said::new(Tone::Bad, "Missed", format!("{aim}: it is missed.")),
        Some(_) => Said::new(
            Tone::Open,
            "Cannot be told yet",
            format!("{aim}: the interval lies on both sides, so it cannot be told yet whether it is met."),
        ),
        None => Said::new(Tone::Open, "Not known yet", format!("{aim}.")),
    })
}

/// Money at a glance: what was saved or, where no values are known, what was kept.
pub(super) fn money(net: Option<&Figure>, reduction: Option<&Figure>, currency: &str) -> Said {
    let (unit, figure, what) = match (net, reduction) {
        (Some(net), _) => (Unit::Money(currency.to_owned()), net, "Net value saved"),
        (None, Some(reduction)) => (Unit::Share, reduction, "Churn reduction"),
        (None, None) => {
            let why = "What interventions brought is not known: it needs customers who are held out of them, and time to see who leaves.";
            return Said::new(Tone::Open, "Not known yet", why);
        }
    };
    let said = gain(Some(figure));
    Said { sentence: format!("{what}: {}. {}", unit.write_whole(figure), said.sentence), ..said }
}

/// How good the scores were, at a glance.
pub(super) fn quality(auc: Option<&Figure>, slope: Option<&Figure>) -> Said {
    let Some(auc) = auc else {
        return Said::new(
            Tone::Open,
            "Not known yet",
            "There are too few customers of whom it is known whether they left.",
        );
    };
    let order = ranking(auc);
    match slope {
        _ if auc.low <= 0.5 => {
            Said::new(Tone::Bad, "Needs a look", format!("{order} That may be no better than a coin."))
        }
        Some(slope) if !slope.may_be(1.0) => Said::new(
            Tone::Bad,
            "Needs a look",
            format!(
                "{order} But the scores themselves are too {}.",
                if slope.value < 1.0 { "extreme" } else { "timid" }
            ),
        ),
        Some(_) => {
            Said::new(Tone::Good, "Good", format!("{order} Nothing speaks against the scores as probabilities."))
        }
        None => Said::new(Tone::Good, "Good", order),
    }
}

/// What an area under the ROC curve means.
pub(super) fn ranking(auc: &Figure) -> String {
    let pairs = grouped(auc.value * 100.0, 0);
    format!(
        "Of one customer who left and one who stayed, the one who left had the higher score in {pairs} of 100 cases."
    )
}

/// What the precision of the top means; `base` is the share of all customers who left.
pub(super) fn precision(figure: Option<&Figure>, base: Option<f64>) -> String {
    let what = "Of the 20% of customers with the highest scores, the share who left.";
    match (figure, base) {
        (Some(figure), Some(base)) if base > 0.0 => {
            let times = grouped(figure.value / base, 1);
            format!(
                "{what} That is {times} times the share of all customers, which is what picking by chance would find."
            )
        }
        _ => what.to_owned(),
    }
}

/// What the calibration says.
pub(super) fn calibration(slope: Option<&Figure>) -> &'static str {
    match slope {
        Some(slope) if slope.high < 1.0 => {
            "Under 1 for sure: scores are too extreme. High ones promise too much churn, low ones too little."
        }
        Some(slope) if slope.low > 1.0 => "Over 1 for sure: scores are too timid, all of them too near to the middle.",
        Some(slope) if slope.may_be(1.0) => {
            "The interval holds 1: nothing speaks against reading a score as a probability."
        }
        _ => "1 at best: then a score can be read as a probability.",
    }
}

/// Verdict on a distance from training, by its name.
pub(super) fn drift(verdict: &str) -> (Tone, &'static str) {
    match verdict {
        "ok" => (Tone::Good, "as in training"),
        "warn" => (Tone::Bad, "has moved"),
        "alarm" => (Tone::Bad, "has moved far"),
        _ => (Tone::Open, "too few values to tell"),
    }
}

/// Drift of the version that answers, at a glance.
pub(super) fn drifting(version: Option<&Value>) -> Said {
    let Some(version) = version.filter(|version| version["n"].as_u64().is_some_and(|n| n > 0)) else {
        return Said::new(Tone::Open, "Not known yet", "No request was counted in the window.");
    };
    let features = version["features"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = version["drifting"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let score = version["score"]["verdict"].as_str().unwrap_or_default();
    if !names.is_empty() || drift(score).0 == Tone::Bad {
        let mut moved = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        if names.len() > 3 {
            moved += &format!(" and {} more", names.len() - 3);
        }
        let moved = if moved.is_empty() { "The scores themselves".to_owned() } else { moved };
        let sentence = format!("{moved}: no longer as in training. The model was not made for such customers.");
        return Said::new(Tone::Bad, "Has moved", sentence);
    }
    let untold = features.iter().filter(|one| one["verdict"] == "grey").count();
    if untold > 0 || score == "grey" {
        let sentence = format!("Nothing has surely moved. Of {} features {untold} cannot be told yet.", features.len());
        return Said::new(Tone::Open, "Cannot be told yet", sentence);
    }
    Said::new(
        Tone::Good,
        "Stable",
        format!("All {} features and the score are as they were in training.", features.len()),
    )
}

/// Verdict on a group, by its name.
pub(super) fn parity(verdict: &str) -> (Tone, &'static str) {
    match verdict {
        "pass" => (Tone::Good, "fair by the four-fifths rule"),
        "fail" => (Tone::Bad, "offered too little"),
        _ => (Tone::Open, "cannot be told yet"),
    }
}

/// Fairness at a glance: the groups of all attributes.
pub(super) fn fairness(attributes: &[Value]) -> Said {
    let groups = || attributes.iter().flat_map(|attribute| attribute["groups"].as_array().into_iter().flatten());
    let with = |verdict: &str| groups().filter(|group| group["verdict"] == verdict).count();
    let (pass, fail, unresolved) = (with("pass"), with("fail"), with("unresolved"));
    let compared = pass + fail + unresolved;
    if compared == 0 {
        let why = "No groups could be compared: decisions have to say which group a customer belongs to (context.audit), and enough of them have to be offered something.";
        return Said::new(Tone::Open, "Not known yet", why);
    }
    let of =
        |count: usize| format!("{count} of {compared} compared {}", if compared == 1 { "group" } else { "groups" });
    match (fail, unresolved) {
        (0, 0) => {
            Said::new(Tone::Good, "Fair", format!("{}: offered something at least four fifths as often.", of(pass)))
        }
        (0, _) => Said::new(
            Tone::Open,
            "Cannot be told yet",
            format!("Not known to be offered something four fifths as often: {}.", of(unresolved)),
        ),
        _ => Said::new(
            Tone::Bad,
            "Needs a look",
            format!("Surely offered something less than four fifths as often as the best placed group: {}.", of(fail)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figure(low: f64, value: f64, high: f64) -> Figure {
        Figure { value, low, high, n: Some(9) }
    }

    #[test]
    fn a_gain_is_claimed_only_beyond_chance() {
        let state = |figure: Option<Figure>| gain(figure.as_ref()).state;
        assert_eq!(state(Some(figure(0.1, 0.2, 0.3))), "A gain");
        assert_eq!(state(Some(figure(-0.3, -0.2, -0.1))), "A loss");
        assert_eq!(state(Some(figure(-0.1, 0.2, 0.3))), "Cannot be told yet");
        assert_eq!(state(None), "Not known yet");
        let said = money(None, Some(&figure(0.1, 0.2, 0.3)), "EUR");
        assert!(said.sentence.starts_with("Churn reduction: 20.0% (10.0% to 30.0%)."), "{}", said.sentence);
    }

    #[test]
    fn a_target_is_told_with_its_side() {
        let kpi = json!({"name": "cost_per_decision", "target": 5.0, "standing": "missed"});
        let said = standing(&kpi, &Unit::Money("EUR".into())).expect("a target");
        assert_eq!((said.tone, said.sentence.as_str()), (Tone::Bad, "The target is at most 5.00 EUR: it is missed."));
        assert!(standing(&json!({"name": "spend"}), &Unit::Share).is_none());
    }

    #[test]
    fn quality_is_good_only_where_nothing_speaks_against_it() {
        let slope = figure(0.8, 1.0, 1.2);
        let state = |auc: Option<Figure>, slope: Figure| quality(auc.as_ref(), Some(&slope)).state;
        assert_eq!(state(Some(figure(0.7, 0.8, 0.9)), slope), "Good");
        assert_eq!(state(Some(figure(0.7, 0.8, 0.9)), figure(0.4, 0.5, 0.6)), "Needs a look");
        assert_eq!(state(Some(figure(0.4, 0.6, 0.8)), slope), "Needs a look");
        assert_eq!(state(None, slope), "Not known yet");
    }

    #[test]
    fn what_cannot_be_told_of_groups_and_features_is_not_called_good() {
        let groups = |verdicts: &[&str]| {
            let groups: Vec<Value> = verdicts.iter().map(|verdict| json!({"verdict": verdict})).collect();
            fairness(&[json!({"groups": groups})]).tone
        };
        assert_eq!(groups(&["pass", "pass"]), Tone::Good);
        assert_eq!(groups(&["pass", "unresolved"]), Tone::Open);
        assert_eq!(groups(&["unresolved", "fail"]), Tone::Bad);
        assert_eq!(groups(&[]), Tone::Open);
        let version = |verdict: &str, drifting: &[&str]| {
            let feature = json!({"feature": "tenure", "verdict": verdict});
            let score = json!({"verdict": "ok"});
            drifting_tone(&json!({"n": 9, "score": score, "features": [feature], "drifting": drifting}))
        };
        assert_eq!(version("ok", &[]), Tone::Good);
        assert_eq!(version("grey", &[]), Tone::Open);
        assert_eq!(version("alarm", &["tenure"]), Tone::Bad);
        assert_eq!(drifting(None).tone, Tone::Open);
    }

    fn drifting_tone(version: &Value) -> Tone {
        drifting(Some(version)).tone
    }
}
