//! Replay: makes recorded decisions again from their recorded inputs, the bundle on disk and the recorded policy document, and
//! compares them bit for bit. Nothing is recorded or changed.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::domain::policy::Policy;
use crate::domain::policy::assessment::{Offer, REFUSED};
use crate::domain::policy::document;
use crate::http;
use crate::ledger::{Extra, Inputs, Recorded};
use crate::model::{LoadOptions, Model, Runtime};

/// What a decision was made again by: bundles and policies are loaded once.
pub struct Replay<'r> {
    runtime: &'r Runtime,
    models_dir: PathBuf,
    options: LoadOptions,
    models: HashMap<String, Result<Model, String>>,
    policies: HashMap<String, Result<Policy, String>>,
}

/// How a decision came out the second time.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// As it was, to the last bit.
    Same,
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
}

impl<'r> Replay<'r> {
    /// Replays with bundles from `models_dir`, loaded as `options` say.
    pub fn new(runtime: &'r Runtime, models_dir: PathBuf, options: LoadOptions) -> Self {
        Self { runtime, models_dir, options, models: HashMap::new(), policies: HashMap::new() }
    }

    /// Makes `recorded` again.
    pub fn run(&mut self, recorded: &Recorded) -> Outcome {
        match self.decide(recorded) {
            Err(why) => Outcome::Impossible(why),
            Ok(Again { score, tier, action, extra }) => {
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
                if extra.rules != before.rules {
                    let [again, before] =
                        [&extra.rules, &before.rules].map(|rules| rules.as_deref().unwrap_or_default().join(" "));
                    differences.push(format!("rules {again} instead of {before}"));
                }
                if differences.is_empty() { Outcome::Same } else { Outcome::Different(differences.join(", ")) }
            }
        }
    }

    fn decide(&mut self, recorded: &Recorded) -> Result<Again, String> {
        let inputs = match &recorded.inputs {
            Inputs::Kept(inputs) => inputs,
            Inputs::Erased => return Err("its inputs were erased".to_owned()),
            Inputs::NotKept => return Err("its inputs were not kept".to_owned()),
        };
        let (runtime, dir, options) = (self.runtime, &self.models_dir, self.options);
        let model = self.models.entry(recorded.model_digest.clone()).or_insert_with(|| {
            let path = dir.join(&recorded.model).join(&recorded.model_version);
            let model = Model::load(runtime, &path, options).map_err(|error| error.to_string())?;
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
        let refused: Vec<&str> =
            recorded.extra.rules.iter().flatten().filter_map(|rule| rule.strip_prefix(REFUSED)).collect();
        let is_affordable =
            |offer: &Offer| !refused.contains(&policy.interventions()[offer.intervention].action.as_str());
        let choice = match policy.holds_out(&record.customer_id) {
            true => assessment.hold_out(),
            false => assessment.choose(recorded.extra.shadow_price.unwrap_or(0.0), is_affordable),
        };
        Ok(Again {
            score: score.value(),
            tier: policy.tiers()[assessment.tier].name.clone(),
            action: policy.interventions()[choice.intervention].action.clone(),
            extra: Extra::of(policy, assessment.tier, assessment.value_at_stake, &assessment.trace, &choice),
        })
    }
}

impl std::fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("models_dir", &self.models_dir).finish_non_exhaustive()
    }
}
