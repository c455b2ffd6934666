//! Replay: makes recorded decisions again from their recorded inputs, the bundle on disk and the recorded policy document, and
//! compares them bit for bit. Nothing is recorded or changed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::domain::money::Money;
use crate::domain::policy::Policy;
use crate::domain::policy::assessment::{ALLOCATED, Assessment, FULL, Offer, REFUSED};
use crate::domain::policy::document;
use crate::domain::policy::layers::{self, Case, Chance, Layers, Layout, Room, Way};
use crate::domain::score::Score;
use crate::http;
use crate::ledger::{Extra, Inputs, Kept, Reading, Reason, Recorded};
use crate::model::{LoadOptions, Model, ONNX_RUNTIME, Runtime};

/// What a decision was made again by: bundles and policies are loaded once.
pub struct Replay<'r> {
    runtime: &'r Runtime,
    models_dir: PathBuf,
    options: LoadOptions,
    models: HashMap<String, Result<Model, String>>,
    policies: HashMap<String, Result<Arc<Policy>, String>>,
    experiments: HashMap<String, Result<Experiments, String>>,
}

/// The experiments that ran at a time, over the policy that was in force.
type Experiments = (Arc<Policy>, Arc<Layers>);

/// How far ONNX Runtime's score of a row may be from that of the same row in a batch, in probability. What replay is asked for is that
/// nothing else decided, which a rounding error does not hide.
pub const ROUNDING: f64 = 1e-6;

/// How a decision came out the second time.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// As it was, to the last bit.
    Same,
    /// As it was, to the last bit, from a score that is within [`ROUNDING`]: ONNX Runtime adds up the rows of a batch in another order than a
    /// lone one, and what else was in the batch is not known.
    Rounded,
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
    policy_version: String,
    extra: Extra,
    /// Whether the choice was taken from the record.
    given: bool,
    /// Whether the score was, being that of a batch.
    rounded: bool,
}

impl<'r> Replay<'r> {
    /// Replays with bundles from `models_dir`, loaded as `options` say.
    pub fn new(runtime: &'r Runtime, models_dir: PathBuf, options: LoadOptions) -> Self {
        let (models, policies, experiments) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { runtime, models_dir, options, models, policies, experiments }
    }

    /// Makes `recorded` again; which experiments ran, `reading` knows.
    pub fn run(&mut self, recorded: &Recorded, reading: &Reading) -> Outcome {
        match self.decide(recorded, reading) {
            Err(why) => Outcome::Impossible(why),
            Ok(Again { score, tier, action, policy_version, extra, given, rounded }) => {
                let mut differences = Vec::new();
                if score.to_bits() != recorded.score.to_bits() {
                    differences.push(format!("score {score} instead of {}", recorded.score));
                }
                for (what, again, before) in [
                    ("tier", &tier, &recorded.tier),
                    ("action", &action, &recorded.action),
                    ("policy", &policy_version, &recorded.policy_version),
                ] {
                    if again != before {
                        differences.push(format!("{what} {again} instead of {before}"));
                    }
                }
                let before = &recorded.extra;
                for (what, again, before) in [
                    ("expected value", extra.expected_value, before.expected_value),
                    ("cost", extra.cost, before.cost),
                    ("value at stake", extra.value_at_stake, before.value_at_stake),
                    ("uplift", extra.uplift, before.uplift),
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
                if extra.experiments != before.experiments {
                    let told = |extra: &Extra| match extra.experiments.as_deref() {
                        Some([part]) => format!("{} {}", part.name, part.arm),
                        _ => "none".to_owned(),
                    };
                    differences.push(format!("experiment {} instead of {}", told(&extra), told(before)));
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
                match (differences.is_empty(), given, rounded) {
                    (false, _, _) => Outcome::Different(differences.join(", ")),
                    (true, true, _) => Outcome::Given,
                    (true, false, true) => Outcome::Rounded,
                    (true, false, false) => Outcome::Same,
                }
            }
        }
    }

    /// The experiments that ran when a decision referred to `digest`, and the policy in force.
    fn experiments(&mut self, digest: &str, reading: &Reading) -> Result<Experiments, String> {
        let document = |kept: Kept, digest: &str| {
            let found = reading.document(kept, digest).map_err(|error| error.to_string())?;
            found.ok_or_else(|| format!("what stood on record as {digest} is not there"))
        };
        let policy = |digest: &str| {
            let text = document(Kept::Policy, digest)?;
            let version: String = digest.chars().take(16).collect();
            document::parse(&text, &version).map(Arc::new).map_err(|problems| problems.join("; "))
        };
        let open = || -> Result<Experiments, String> {
            let text = document(Kept::Layout, digest)?;
            let layout: Layout = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let in_force = policy(&layout.policy.digest)?;
            let layers = Layers::open(&text, &in_force, |digest| policy(digest).ok());
            Ok((in_force, Arc::new(layers.map_err(|problems| problems.join("; "))?)))
        };
        self.experiments.entry(digest.to_owned()).or_insert_with(open).clone()
    }

    fn decide(&mut self, recorded: &Recorded, reading: &Reading) -> Result<Again, String> {
        let inputs = match &recorded.inputs {
            Inputs::Kept(inputs) => inputs,
            Inputs::Erased => return Err("its inputs were erased".to_owned()),
            Inputs::NotKept => return Err("its inputs were not kept".to_owned()),
        };
        let layout = recorded.extra.layout.as_deref();
        let experiments = layout.map(|digest| self.experiments(digest, reading)).transpose()?;
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
            let parsed = document::parse(&recorded.policy_document, &recorded.policy_version);
            parsed.map(Arc::new).map_err(|problems| problems.join("; "))
        });
        let policy = match &experiments {
            Some((in_force, _)) => in_force,
            None => policy.as_ref().map_err(Clone::clone)?,
        };

        let record = http::read_record(inputs)?;
        let mut row = vec![0.0; model.schema().columns()];
        model
            .schema()
            .vectorize(&record.features, &mut row)
            .map_err(|_| "its inputs break the dictionary".to_owned())?;
        let own = model.score(&row).map_err(|error| error.to_string())?;
        let before = Score::new(recorded.score).filter(|score| *score != own);
        let is_near = |score: &Score| (score.value() - own.value()).abs() <= ROUNDING;
        let rounded = before.filter(is_near).filter(|_| model.evaluator() == ONNX_RUNTIME);
        let score = rounded.unwrap_or(own);
        let uplifts = model.uplifts(&row).map_err(|error| error.to_string())?;
        let binding = policy.bind_to(model.card()).map_err(|problems| problems.join("; "))?;
        let values = binding.read_with(&record, &uplifts).map_err(|_| "its context breaks the policy".to_owned())?;
        // What there was no money for then is among the rules on record: the same offers are refused, whatever the choice was. Where one
        // of them would not have come up, or one comes up that did, the rules differ. What would have been chosen in another group
        // is asked with the room that there was.
        let before = &recorded.extra;
        let left = before.budget_left_micros.map(Money::from_micros);
        let room = Room { left, full: before.full.clone().unwrap_or_default() };
        let price = before.shadow_price.unwrap_or(0.0);
        let layers = experiments.as_ref().map(|(_, layers)| layers);
        let own = |at: usize| {
            let policy = &layers?.policies()[at];
            let binding = policy.bind_to(model.card()).ok()?;
            let values = binding.read_with(&record, &uplifts).ok()?;
            Some(policy.assess(score, &values))
        };
        // The policy that decided, and so has the actions that were refused, is known by its version.
        let decider = policy_of(policy, layers, &recorded.policy_version);
        let told = |prefix: &str, intervention: usize| {
            let action = decider.interventions().get(intervention).map(|known| known.action.as_str());
            action.is_none() || before.rules.iter().flatten().any(|rule| rule.strip_prefix(prefix) == action)
        };
        let allocated = before.rules.iter().flatten().any(|rule| rule == ALLOCATED);
        let choose = |_, assessment: &Assessment| {
            let mut choice = if allocated {
                // What else was in the batch is not known here. That it could be chosen at all, what it costs and what it is worth is derived.
                let place = decider.interventions().iter().position(|known| known.action == recorded.action);
                assessment.allocate(place.unwrap_or_default(), price)
            } else {
                let is_there = |at| !told(FULL, at) && !told(REFUSED, at);
                assessment.choose(price, |offer: &Offer| is_there(offer.intervention))
            };
            for offer in assessment.offers.iter().filter(|offer| told(FULL, offer.intervention)) {
                // In an allocation whatever is offered may come up; otherwise what was refused did.
                if choice.allocated || choice.refused.contains(offer.intervention) {
                    choice.full.add(offer.intervention);
                }
            }
            choice
        };
        let case = Case {
            policy,
            layers: layers.map(|layers| &**layers),
            customer_id: &record.customer_id,
            at_ms: recorded.decided_at_ms as u64,
            score,
            values: &values,
        };
        let decided = layers::decide(&case, price, own, choose, &room);
        let policy = match (decided.way, layers) {
            (Way::Policy(at), Some(layers)) => &layers.policies()[at],
            _ => policy,
        };
        // Of a batch with a budget no propensity is on record, and none can be told: of those who were held out nothing else shows it.
        let is_told = before.propensity.is_some() || !(allocated || decided.choice.holdout);
        let chance = decided.propensity.map(|propensity| Chance {
            propensity: is_told.then_some(propensity),
            layers: layers.cloned(),
            member: decided.member,
            room,
        });
        let (assessment, choice) = (&decided.assessment, &decided.choice);
        let (stake, trace) = (assessment.value_at_stake, &assessment.trace);
        let mut extra = Extra::of(policy, assessment.tier, stake, trace, choice, chance.as_ref());
        // How many the caller asked for may stand in the address: those on record, and never fewer than the tier wants.
        let tier = &policy.tiers()[assessment.tier];
        let wanted = before.reasons.as_ref().map_or(0, Vec::len).max(tier.explain);
        if wanted > 0 {
            let found = model.explain(&row).map_err(|error| error.to_string())?;
            extra.reasons = Some(Reason::all(&model.book().explain(&found, &record.features, wanted)));
        }
        Ok(Again {
            score: score.value(),
            tier: tier.name.clone(),
            action: policy.interventions()[choice.intervention].action.clone(),
            policy_version: policy.version().to_owned(),
            extra,
            given: choice.allocated,
            rounded: rounded.is_some(),
        })
    }
}

/// The policy of `version`: the one in force, or that of an arm.
fn policy_of<'p>(in_force: &'p Policy, layers: Option<&'p Arc<Layers>>, version: &str) -> &'p Policy {
    let arms = layers.into_iter().flat_map(|layers| layers.policies());
    let own = arms.map(|policy| &**policy).find(|policy| policy.version() == version);
    if in_force.version() == version { in_force } else { own.unwrap_or(in_force) }
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
