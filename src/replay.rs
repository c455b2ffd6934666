//! Replay: makes recorded decisions again from their recorded inputs, the bundle on disk and the recorded policy document, and
//! compares them bit for bit. Nothing is recorded or changed.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::domain::policy::Policy;
use crate::domain::policy::assessment::{ALLOCATED, FULL, Offer, REFUSED};
use crate::domain::policy::document;
use crate::http;
use crate::ledger::{Extra, Inputs, Reason, Recorded};
use crate::model::{LoadOptions, Model, Runtime};

/// What a decision was made again by: bundles and policies are loaded once.
pub struct Replay<'r> {
    runtime: &'r Runtime,
    models_dir: PathBuf,
    row_p99_us_max: u64,
    models: HashMap<String, Result<Model, String>>,
    policies: HashMap<String, Result<Policy, String>>,
}

/// How a decision came out the second time.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// As it was, to the last bit.
    Same,
    /// As it was, to the last bit, but for the choice: that was made for a whole batch, to spend one budget over it, and is taken from the
    /// record. It is one that could be made.
    Given,
    /// Differently, and how.
    Different(String),
    /// Not at all, and why.
    Impossible(String),
}

/// A decision, made again.
struct Again {
    score: f64,
    tier: String,
    action: String,
    extra: Extra,
    /// Whether the choice was taken from the record.
    given: bool,
}

impl<'r> Replay<'r> {
    /// Replays with bundles from `models_dir`.
    pub fn new(runtime: &'r Runtime, models_dir: PathBuf, row_p99_us_max: u64) -> Self {
        Self { runtime, models_dir, row_p99_us_max, models: HashMap::new(), policies: HashMap::new() }
    }

    /// Makes `recorded` again.
    pub fn run(&mut self, recorded: &Recorded) -> Outcome {
        match self.decide(recorded) {
            Err(why) => Outcome::Impossible(why),
            Ok(Again { score, tier, action, extra, given }) => {
                let mut differences = Vec::new();
                if score.to_bits() != recorded.score.to_bits() {
                    differences.push(format!("score {score} instead of {}", recorded.score));
                }
                for (what, again, before) in [("tier", &tier, &recorded.tier), ("action", &action, &recorded.action)] {
                    if again != before {
                        differences.push(format!("{what} {again} instead of {before}"));
                    }
                }
                let before = &recorded.extra;
                for (what, again, before) in [
                    ("expected value", extra.expected_value, before.expected_value),
                    ("cost", extra.cost, before.cost),
                    ("value at stake", extra.value_at_stake, before.value_at_stake),
                    ("shadow price", extra.shadow_price, before.shadow_price),
                    ("propensity", extra.propensity, before.propensity),
                ] {
                    if again.map(f64::to_bits) != before.map(f64::to_bits) {
                        let [again, before] =
                            [again, before].map(|value| value.map_or("none".to_owned(), |value| value.to_string()));
                        differences.push(format!("{what} {again} instead of {before}"));
                    }
                }
                if extra.holdout != before.holdout {
                    differences.push(format!("holdout {:?} instead of {:?}", extra.holdout, before.holdout));
                }
                if told(&extra.reasons) != told(&before.reasons) {
                    let count = |reasons: &Option<Vec<Reason>>| reasons.as_ref().map_or(0, Vec::len);
                    let [again, before] = [count(&extra.reasons), count(&before.reasons)];
                    differences.push(format!("reasons: {again} that are not the {before} on record"));
                }
                if extra.rules != before.rules {
                    let [again, before] =
                        [&extra.rules, &before.rules].map(|rules| rules.as_deref().unwrap_or_default().join(" "));
                    differences.push(format!("rules {again} instead of {before}"));
                }
                match (differences.is_empty(), given) {
                    (true, false) => Outcome::Same,
                    (true, true) => Outcome::Given,
                    (false, _) => Outcome::Different(differences.join(", ")),
                }
            }
        }
    }

    fn decide(&mut self, recorded: &Recorded) -> Result<Again, String> {
        let inputs = match &recorded.inputs {
            Inputs::Kept(inputs) => inputs,
            Inputs::Erased => return Err("its inputs were erased".to_owned()),
            Inputs::NotKept => return Err("its inputs were not kept".to_owned()),
        };
        let (runtime, dir, row_p99_us_max) = (self.runtime, &self.models_dir, self.row_p99_us_max);
        let model = self.models.entry(recorded.model_digest.clone()).or_insert_with(|| {
            let path = dir.join(&recorded.model).join(&recorded.model_version);
            let model = Model::load(runtime, &path, LoadOptions { lanes: 1, row_p99_us_max })
                .map_err(|error| error.to_string())?;
            if model.digest() == recorded.model_digest {
                Ok(model)
            } else {
                Err(format!(
                    "the bundle {} is not the one that decided: its digest is {}",
                    path.display(),
                    model.digest()
                ))
            }
        });
        let model = model.as_ref().map_err(Clone::clone)?;
        let policy = self.policies.entry(recorded.policy_version.clone()).or_insert_with(|| {
            document::parse(&recorded.policy_document, &recorded.policy_version).map_err(|problems| problems.join("; "))
        });
        let policy = policy.as_ref().map_err(Clone::clone)?;

        let record = http::read_record(inputs)?;
        let mut row = vec![0.0; model.schema().columns()];
        model
            .schema()
            .vectorize(&record.features, &mut row)
            .map_err(|_| "its inputs break the dictionary".to_owned())?;
        let score = model.score(&row).map_err(|error| error.to_string())?;
        let binding = policy.bind(&model.card().features).map_err(|problems| problems.join("; "))?;
        let values = binding.read(&record).map_err(|_| "its context breaks the policy".to_owned())?;
        let assessment = policy.assess(score, &values);
        // What there was no money for then is among the rules on record: the same offers are refused, whatever the choice was. Where one
        // of them would not have come up, or one comes up that did, the rules differ.
        let told = |prefix: &str, intervention: usize| {
            let action = policy.interventions()[intervention].action.as_str();
            recorded.extra.rules.iter().flatten().any(|rule| rule.strip_prefix(prefix) == Some(action))
        };
        let has_place = |intervention: usize| !told(FULL, intervention);
        let is_affordable = |offer: &Offer| has_place(offer.intervention) && !told(REFUSED, offer.intervention);
        let shadow_price = recorded.extra.shadow_price.unwrap_or(0.0);
        let allocated = recorded.extra.rules.iter().flatten().any(|rule| rule == ALLOCATED);
        let mut choice = if policy.holds_out(&record.customer_id) {
            assessment.hold_out()
        } else if allocated {
            // What else was in the batch is not known here. That it could be chosen at all, what it costs and what it is worth is derived.
            let place = policy.interventions().iter().position(|known| known.action == recorded.action);
            assessment.allocate(place.unwrap_or_default(), shadow_price)
        } else {
            assessment.choose(shadow_price, is_affordable)
        };
        for offer in assessment.offers.iter().filter(|offer| !has_place(offer.intervention)) {
            // In an allocation whatever is offered may come up; otherwise what was refused did.
            if choice.allocated || choice.refused.contains(offer.intervention) {
                choice.full.add(offer.intervention);
            }
        }
        let mut extra = Extra::of(policy, assessment.tier, assessment.value_at_stake, &assessment.trace, &choice);
        // How many the caller asked for may stand in the address: those on record, and never fewer than the tier wants.
        let tier = &policy.tiers()[assessment.tier];
        let wanted = recorded.extra.reasons.as_ref().map_or(0, Vec::len).max(tier.explain);
        if wanted > 0 {
            let found = model.explain(&row).map_err(|error| error.to_string())?;
            extra.reasons = Some(Reason::all(&model.book().explain(&found, &record.features, wanted)));
        }
        Ok(Again {
            score: score.value(),
            tier: tier.name.clone(),
            action: policy.interventions()[choice.intervention].action.clone(),
            extra,
            given: choice.allocated,
        })
    }
}

/// Reasons to the last bit.
fn told(reasons: &Option<Vec<Reason>>) -> Vec<(&str, u64)> {
    reasons.iter().flatten().map(|reason| (reason.code.as_str(), reason.shap.to_bits())).collect()
}

impl std::fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("models_dir", &self.models_dir).finish_non_exhaustive()
    }
}
