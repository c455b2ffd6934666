//! The section of a review about money and effect: what interventions did, what that was worth, and what it cost.

use serde_json::Value;

use super::figure::{Figure, Unit, grouped};
use super::markup::{Markup, words};
use super::plot::{Mark, Row, Tone, intervals};
use super::review::{Answers, day, figure, heading, list, string};
use super::text as said;

impl Answers {
    pub(super) fn money(&self) -> Vec<Markup> {
        let mut out = heading(
            "Money and effect",
            "Who is treated is compared with customers who are held out by chance. The line through each dot is its 95% interval: where the truth lies as far as these customers can tell.",
        );
        let money = Unit::Money(self.currency().to_owned());
        for name in ["net_value_saved", "value_saved", "cost_of_interventions", "churn_reduction", "customers_kept"] {
            out.push(self.one(name, &money));
        }
        out.push(self.churn_rates());
        for name in ["conversion_rate", "cost_per_decision", "revenue_per_order", "spend"] {
            out.push(self.one(name, &money));
        }
        out.extend(self.budget(&money));
        out
    }

    /// A figure of the tree by itself.
    fn one(&self, name: &str, money: &Unit) -> Markup {
        let kpi = self.kpi(name);
        let unit = match kpi["unit"].as_str() {
            Some("share") => Unit::Share,
            Some("customers") => Unit::Customers,
            _ => money.clone(),
        };
        let (title, means) = said::meaning(name);
        let found = Figure::of(&kpi["estimate"]);
        let standing = said::standing(kpi, &unit);
        let gain = said::is_gain(name).then(|| said::gain(found.as_ref()));
        let mut marks = Vec::new();
        if gain.is_some() {
            marks.push(Mark::new(0.0, "no effect"));
        }
        if let Some(target) = kpi["target"].as_f64() {
            marks.push(Mark::new(target, format!("target {}", unit.write(target))));
        }
        let tone = standing.as_ref().or(gain.as_ref()).map_or(Tone::Plain, |said| said.tone);
        let mut sentences = vec![means];
        sentences.extend(gain.as_ref().map(|said| said.sentence.as_str()));
        sentences.extend(standing.as_ref().map(|said| said.sentence.as_str()));
        let row = Row { tone, ..Row::new(of_customers(found.as_ref()), found) };
        // A sum that nothing of is left to chance needs no plot.
        match found {
            Some(sum) if sum.low == sum.high && marks.is_empty() => {
                figure(title, &sentences, words("p", "state", unit.write(sum.value)))
            }
            _ => figure(title, &sentences, intervals(title, &unit, &[row], &marks)),
        }
    }

    fn churn_rates(&self) -> Markup {
        let names = [
            ("churn_rate_treated", "treated"),
            ("churn_rate_held_out", "held out"),
            ("churn_rate", "all of them"),
            ("churn_rate_early", "this window, estimated"),
        ];
        let mut rows: Vec<Row> =
            names.map(|(name, label)| Row::new(label, Figure::of(&self.kpi(name)["estimate"]))).into();
        let parts = list(&self.kpis["parts"]);
        for dimension in ["version", "segment", "policy"] {
            let of = parts.iter().filter(|part| part["dimension"] == dimension);
            let of: Vec<&Value> = of.collect();
            // One part is the whole.
            for part in of.iter().filter(|_| of.len() > 1) {
                let rate = list(&part["tree"]).iter().find(|kpi| kpi["name"] == "churn_rate");
                let label = format!("{dimension} {}", string(&part["value"]));
                rows.push(Row::new(label, rate.and_then(|rate| Figure::of(&rate["estimate"]))));
            }
        }
        let means = "The share of customers who left. Treated and held out differ by nothing but the interventions; parts differ in much else.";
        figure("Churn", &[means], intervals("Churn rates", &Unit::Share, &rows, &[]))
    }

    fn budget(&self, money: &Unit) -> Option<Markup> {
        let budget = self.kpis["budget"].as_object()?;
        let of = |name: &str| budget.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        let to = budget.get("to").map_or("-", day);
        let means = format!(
            "Of {} for this {}, which ends on {to}, {} are spent and {} are left.",
            money.write(of("amount")),
            budget.get("period").map_or("-", string),
            money.write(of("spent")),
            money.write(of("left")),
        );
        let row = Row { bar: true, ..Row::new("spent", Some(Figure::exact(of("spent")))) };
        let marks = [Mark::new(of("amount"), "the budget")];
        Some(figure("Budget", &[&means], intervals("Budget", money, &[row], &marks)))
    }
}

fn of_customers(figure: Option<&Figure>) -> String {
    figure.and_then(|figure| figure.n).map_or(String::new(), |n| match n {
        1 => "of 1 customer".to_owned(),
        n => format!("of {} customers", grouped(n as f64, 0)),
    })
}
