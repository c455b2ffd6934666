//! The experiments that run on a model at a time, one layer above the other: who is treated by which of them, what a customer is then
//! offered, and how probable that was. Pure, so that a replay gives the same. Which ones run is in `registry`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::Policy;
use super::assessment::{Assessment, Choice, Offer};
use super::condition::Known;
use super::experiment::{Experiment, Group, HOLDOUT, Treatment};
use crate::domain::money::Money;
use crate::domain::rollout::slots::PolicyRef;
use crate::domain::score::Score;

/// What runs on a model, as it stands on record: all that has to be known to assign a customer again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The policy in force.
    pub policy: PolicyRef,
    /// The experiments, in the order in which they may treat a customer.
    pub experiments: Vec<Experiment>,
}

impl Layout {
    /// The document that stands on record, and the first 32 hexadecimal digits of its sha256, by which it is found again.
    pub fn document(&self) -> (String, String) {
        let document = serde_json::to_string(self).unwrap_or_default();
        (digest_of(&document), document)
    }
}

fn digest_of(document: &str) -> String {
    Sha256::digest(document).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What decides on a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The policy in force.
    Usual,
    /// The policy in force, with one of its interventions, by its place, before all others.
    Preferred(usize),
    /// The policy of an arm, by its place in [`Layers::policies`].
    Policy(usize),
    /// Nobody: the customer is held out.
    Nothing,
}

/// The experiments that run on a model.
#[derive(Debug)]
pub struct Layers {
    digest: String,
    layers: Vec<Layer>,
    policies: Vec<Arc<Policy>>,
}

#[derive(Debug)]
struct Layer {
    experiment: Experiment,
    /// What decides on each arm.
    ways: Vec<Way>,
}

/// Where a customer is: in one group of one experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    layer: u8,
    group: Group,
}

/// What chance had to do with a decision: what is to be recorded with it.
#[derive(Debug, Clone)]
pub struct Chance {
    /// How probable it was that this customer is offered this action: see [`decide`]. `None` in a batch with a budget of its own, where
    /// that hangs on all other rows.
    pub propensity: Option<f64>,
    /// The experiments that ran.
    pub layers: Option<Arc<Layers>>,
    /// The one that the customer is part of.
    pub member: Option<Member>,
    /// What there was room for.
    pub room: Room,
}

/// What a policy in force had room for when it was asked, whoever is treated: its budget and its capacities hold for all ways.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// What the budget had left; `None` where there is none.
    pub left: Option<Money>,
    /// The actions that had no place left.
    pub full: Vec<String>,
}

impl Chance {
    /// The experiment that the customer is part of, and the name of the arm, which may be `holdout`.
    pub fn part(&self) -> Option<(&str, &str)> {
        let layers = self.layers.as_ref()?;
        self.member.map(|member| layers.names(member))
    }
}

/// A customer whom a policy in force was asked about.
#[derive(Debug, Clone, Copy)]
pub struct Case<'c> {
    /// The policy in force.
    pub policy: &'c Policy,
    /// The experiments that run.
    pub layers: Option<&'c Layers>,
    /// Who.
    pub customer_id: &'c str,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The score.
    pub score: Score,
    /// What is known of the customer, as the policy in force reads it.
    pub values: &'c [Known<'c>],
}

/// What came of a case.
#[derive(Debug)]
pub struct Decided {
    /// What decided; a policy that could not read the customer has given way to the usual one.
    pub way: Way,
    /// The experiment that the customer is part of.
    pub member: Option<Member>,
    /// What could be offered.
    pub assessment: Assessment,
    /// What is offered.
    pub choice: Choice,
    /// How probable that was; `None` where neither a holdout nor an experiment had a say.
    pub propensity: Option<f64>,
}

impl Layers {
    /// The experiments of `document`, which [`Layout::document`] wrote, over the policy in force; `policy_of` gives the policy of an arm
    /// by the sha256 of its document. Always read from the text, so that what served and what replays has the same shares to the last bit.
    ///
    /// Errors: what cannot be done under the policy in force, as sentences.
    pub fn open(
        document: &str,
        in_force: &Policy,
        policy_of: impl Fn(&str) -> Option<Arc<Policy>>,
    ) -> Result<Self, Vec<String>> {
        let layout: Layout =
            serde_json::from_str(document).map_err(|error| vec![format!("the experiments cannot be read: {error}")])?;
        let (mut policies, mut digests): (Vec<Arc<Policy>>, Vec<String>) = (Vec::new(), Vec::new());
        let mut problems = Vec::new();
        for experiment in &layout.experiments {
            for arm in &experiment.arms {
                if let Treatment::Policy(PolicyRef { digest, .. }) = &arm.treatment
                    && !digests.contains(digest)
                    && let Some(policy) = policy_of(digest)
                {
                    policies.push(policy);
                    digests.push(digest.clone());
                }
            }
            let place = |digest: &str| digests.iter().position(|known| known == digest);
            let misfits = experiment.misfits(in_force, |digest| place(digest).map(|at| &*policies[at]));
            let told = |(pointer, text): (String, String)| {
                format!("the experiment \"{}\" does not fit the policy: {pointer}: {text}", experiment.name)
            };
            problems.extend(misfits.into_iter().map(told));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let way = |treatment: &Treatment| match treatment {
            Treatment::Control => Way::Usual,
            Treatment::Intervention(action) => {
                let place = in_force.interventions().iter().position(|known| known.action == *action);
                place.map_or(Way::Usual, Way::Preferred)
            }
            Treatment::Policy(reference) => {
                let place = digests.iter().position(|known| *known == reference.digest);
                place.map_or(Way::Usual, Way::Policy)
            }
        };
        let layer = |experiment: Experiment| {
            let ways = experiment.arms.iter().map(|arm| way(&arm.treatment)).collect();
            Layer { experiment, ways }
        };
        Ok(Self { digest: digest_of(document), layers: layout.experiments.into_iter().map(layer).collect(), policies })
    }

    /// What it is found by on record.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The policies of all arms, each once.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// The experiment that a customer is part of at `at_ms`: the first one that has a group for it, the control being one. So nobody is
    /// in two, and as the salts are independent, what a later one loses to an earlier one is lost by all its groups alike.
    pub fn member(&self, customer_id: &str, at_ms: u64) -> Option<Member> {
        self.running(at_ms).find_map(|(at, layer)| {
            let group = layer.experiment.assign(customer_id).group;
            (group != Group::Outside).then_some(Member { layer: at as u8, group })
        })
    }

    fn running(&self, at_ms: u64) -> impl Iterator<Item = (usize, &Layer)> {
        self.layers.iter().enumerate().filter(move |(_, layer)| layer.experiment.runs_at(at_ms))
    }

    fn way(&self, member: Member) -> Way {
        match member.group {
            Group::Holdout => Way::Nothing,
            Group::Arm(at) => self.layers[usize::from(member.layer)].ways[at],
            Group::Outside => Way::Usual,
        }
    }

    fn names(&self, member: Member) -> (&str, &str) {
        let experiment = &self.layers[usize::from(member.layer)].experiment;
        let arm = match member.group {
            Group::Arm(at) => &experiment.arms[at].name,
            Group::Holdout | Group::Outside => HOLDOUT,
        };
        (&experiment.name, arm)
    }
}

/// Decides a case. Who is held out by the policy in force is offered nothing and is part of no experiment, so that its holdout stays
/// clean; everybody else is treated by the first experiment that has a group for them.
///
/// `own` gives what the policy of an arm makes of the customer, `None` where it cannot read it: then the policy in force decides.
/// `choose` chooses of what the way that decides has assessed, and sets the money aside. What others would have been offered is chosen where there was `room`, at the same shadow
/// price, which is `price` for who is held out.
///
/// The propensity is the probability, over the hashes that assign, that this customer is offered this action: the shares of all groups
/// whose treatment leads to it, those of later experiments times the share that earlier ones leave. The score, the shadow price
/// and the room are taken as they are.
pub fn decide(
    case: &Case,
    price: f64,
    own: impl Fn(usize) -> Option<Assessment>,
    choose: impl FnOnce(Way, &Assessment) -> Choice,
    room: &Room,
) -> Decided {
    let Case { policy, layers, customer_id, at_ms, score, values } = *case;
    let held_out = policy.holdout().map_or(0.0, |holdout| holdout.share());
    let is_held_out = policy.holds_out(customer_id);
    let member = layers.filter(|_| !is_held_out).and_then(|layers| layers.member(customer_id, at_ms));
    let mut way = match (is_held_out, layers.zip(member)) {
        (true, _) => Way::Nothing,
        (false, Some((layers, member))) => layers.way(member),
        (false, None) => Way::Usual,
    };
    let assess = |way: Way| match way {
        Way::Usual | Way::Nothing => (way, policy.assess(score, values)),
        Way::Preferred(place) => (way, policy.assess_preferring(place, score, values)),
        Way::Policy(at) => own(at).map_or_else(|| (Way::Usual, policy.assess(score, values)), |own| (way, own)),
    };
    let assessment;
    (way, assessment) = assess(way);
    let choice = match way {
        Way::Nothing => Choice { shadow_price: price, ..assessment.hold_out() },
        _ => choose(way, &assessment),
    };
    if layers.is_none() && policy.holdout().is_none() {
        return Decided { way, member, assessment, choice, propensity: None };
    }
    let action_of = |way: Way, place: usize| match (way, layers) {
        (Way::Policy(at), Some(layers)) => &*layers.policies[at].interventions()[place].action,
        _ => &*policy.interventions()[place].action,
    };
    let action = action_of(way, choice.intervention);
    // What each way leads to is asked once.
    let mut known: SmallVec<[(Way, bool); 8]> = SmallVec::new();
    known.push((way, true));
    let mut leads = |asked: Way| match known.iter().find(|(way, _)| *way == asked) {
        Some((_, leads)) => *leads,
        None => {
            let (way, place) = match assess(asked) {
                (Way::Nothing, _) => (Way::Nothing, 0),
                (way, assessment) => {
                    let has_room = |offer: &Offer| {
                        let action = action_of(way, offer.intervention);
                        room.left.is_none_or(|left| offer.cost <= left) && room.full.iter().all(|full| full != action)
                    };
                    (way, assessment.choose(choice.shadow_price, has_room).intervention)
                }
            };
            let leads = action_of(way, place) == action;
            known.push((asked, leads));
            leads
        }
    };
    let (mut same, mut other) = (0.0, 0.0);
    let mut add = |share: f64, way: Way| {
        if share > 0.0 {
            *(if leads(way) { &mut same } else { &mut other }) += share;
        }
    };
    add(held_out, Way::Nothing);
    let mut rest = 1.0 - held_out;
    for (_, layer) in layers.into_iter().flat_map(|layers| layers.running(at_ms)) {
        add(rest * layer.experiment.holdout, Way::Nothing);
        for (arm, way) in layer.experiment.arms.iter().zip(&layer.ways) {
            add(rest * arm.share, *way);
        }
        rest *= layer.experiment.share(Group::Outside);
    }
    add(rest, Way::Usual);
    // Where everything leads to it, it is certain, whatever the rounding.
    let propensity = if other == 0.0 { 1.0 } else { f64::min(same, 1.0) };
    Decided { way, member, assessment, choice, propensity: Some(propensity) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::document;
    use super::super::experiment::Arm;
    use super::*;
    use proptest::prelude::*;

    fn policy(first: &str, fallback: &str, more: &str) -> Arc<Policy> {
        let text = format!(
            r#"
name = "p"
description = ""
currency = "EUR"
[[tiers]]
name = "all"
score = "[0, 1]"
intervention = "{first}"
fallback = [{fallback}]
[interventions.call]
description = ""
cost = 20
expected_effectiveness = 0.5
[interventions.mail]
description = ""
cost = 1
expected_effectiveness = 0.1
[interventions.visit]
description = ""
cost = 90
expected_effectiveness = 0.6
{more}
"#
        );
        Arc::new(document::parse(&text, "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n"))))
    }

    fn experiment(name: &str, salt: u64, arms: &[(f64, Treatment)], holdout: f64) -> Experiment {
        let arm = |(at, (share, treatment)): (usize, &(f64, Treatment))| {
            let (name, description) = (format!("arm-{at}"), String::new());
            Arm { name, share: *share, description, treatment: treatment.clone() }
        };
        let text = || "text".to_owned();
        Experiment {
            name: name.to_owned(),
            hypothesis: text(),
            owner: text(),
            arms: arms.iter().enumerate().map(arm).collect(),
            holdout,
            from_ms: 10,
            to_ms: 20,
            salt: format!("{name}-salted-{salt}"),
        }
    }

    fn reference(digest: &str) -> PolicyRef {
        PolicyRef { name: "p".to_owned(), digest: digest.to_owned() }
    }

    fn layers(in_force: &Policy, other: &Arc<Policy>, experiments: Vec<Experiment>) -> Layers {
        let (_, document) = Layout { policy: reference("in-force"), experiments }.document();
        Layers::open(&document, in_force, |digest| (digest == "other").then(|| other.clone()))
            .unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    }

    /// What is offered, with its propensity, when `left` is there to be spent, and no place for what is `full`.
    fn offered(
        in_force: &Policy,
        layers: &Layers,
        id: &str,
        (left, full): (f64, &str),
        reads: bool,
    ) -> (String, f64, Option<Member>) {
        let score = Score::new(0.5).expect("a score");
        let layers_in = Some(layers);
        let case = Case { policy: in_force, layers: layers_in, customer_id: id, at_ms: 15, score, values: &[] };
        let own = |at: usize| reads.then(|| layers.policies()[at].assess(score, &[]));
        let price_of = |action: &str| {
            let known = in_force.interventions().iter().find(|known| known.action == action);
            known.map(|known| known.cost)
        };
        // The actions of all these policies have prices of their own, so a price tells what is full.
        let choose = |_, assessment: &Assessment| {
            assessment.choose(0.0, |offer| offer.cost.units() <= left && Some(offer.cost) != price_of(full))
        };
        let room = Room { left: Money::from_units(left), full: vec![full.to_owned()] };
        let decided = decide(&case, 0.0, own, choose, &room);
        let policy = match decided.way {
            Way::Policy(at) => &*layers.policies()[at],
            _ => in_force,
        };
        let action = policy.interventions()[decided.choice.intervention].action.clone();
        (action, decided.propensity.expect("a chance"), decided.member)
    }

    fn by(action: &str) -> Treatment {
        Treatment::Intervention(action.to_owned())
    }

    /// Over many salts an action is offered as often as its propensity says, whatever the budget and whoever can be read.
    #[test]
    fn the_propensity_is_how_often_an_action_is_offered() {
        let other = policy("mail", "", "");
        let cases = [(100.0, "", true), (50.0, "", true), (5.0, "", true), (0.0, "", true), (100.0, "", false)];
        for (left, full, reads) in cases.into_iter().chain([(100.0, "call", true), (100.0, "mail", true)]) {
            let (mut seen, mut told) = (BTreeMap::new(), BTreeMap::new());
            let runs = 1_500;
            for salt in 0..runs {
                let in_force = policy("call", "\"mail\"", &format!("[holdout]\nshare = 0.1\nsalt = \"s-{salt}\""));
                let first =
                    experiment("a", salt, &[(0.2, Treatment::Control), (0.2, by("visit")), (0.1, by("none"))], 0.1);
                let second = experiment("b", salt, &[(0.4, Treatment::Policy(reference("other")))], 0.2);
                let layers = layers(&in_force, &other, vec![first, second]);
                let (action, propensity, _) = offered(&in_force, &layers, "C-1", (left, full), reads);
                *seen.entry(action.clone()).or_insert(0_u32) += 1;
                let before: f64 = *told.entry(action).or_insert(propensity);
                assert_eq!(before.to_bits(), propensity.to_bits(), "the same whatever group it came from");
            }
            let sum: f64 = told.values().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{told:?}");
            for (action, propensity) in &told {
                let share = f64::from(seen[action]) / runs as f64;
                let sd = (propensity * (1.0 - propensity) / runs as f64).sqrt();
                assert!(
                    (share - propensity).abs() <= 4.0 * sd,
                    "{left} {full} {reads} {action}: {share}, told {propensity}"
                );
            }
        }
    }

    #[test]
    fn a_customer_is_in_the_first_experiment_that_has_a_group_for_it() {
        let in_force = policy("call", "", "[holdout]\nshare = 0.2");
        let other = policy("mail", "", "");
        let first = experiment("a", 1, &[(0.3, Treatment::Control)], 0.1);
        let second = experiment("b", 1, &[(0.5, by("mail"))], 0.1);
        let both = layers(&in_force, &other, vec![first.clone(), second.clone()]);
        let mut counts = [0; 3];
        for number in 0..2_000 {
            let id = format!("C-{number}");
            let (action, _, member) = offered(&in_force, &both, &id, (1e9, ""), true);
            let groups = [&first, &second].map(|experiment| experiment.assign(&id).group);
            let expected =
                groups.iter().position(|group| *group != Group::Outside).filter(|_| !in_force.holds_out(&id));
            let expected = expected.map(|layer| Member { layer: layer as u8, group: groups[layer] });
            assert_eq!(member, expected, "{id}");
            counts[expected.map_or(2, |member| usize::from(member.layer))] += 1;
            if in_force.holds_out(&id) {
                assert_eq!(action, "none");
            }
        }
        assert!(counts.iter().all(|count| *count > 200), "{counts:?}");
        // When its time is over it has nobody, and the next one gets them.
        assert_eq!(both.member("C-1", 20), None);
    }

    #[test]
    fn what_cannot_be_done_or_read_is_told() {
        let in_force = policy("call", "", "");
        let wrong =
            Layout { policy: reference("in-force"), experiments: vec![experiment("a", 1, &[(0.3, by("yacht"))], 0.0)] };
        let told = Layers::open(&wrong.document().1, &in_force, |_| None).expect_err("a yacht");
        assert!(told[0].contains("/arms/0/intervention"), "{told:?}");
        assert!(Layers::open("{}", &in_force, |_| None).is_err());
        let (digest, document) = wrong.document();
        assert_eq!((digest.len(), digest), (32, digest_of(&document)));
    }

    proptest! {
        #[test]
        fn nothing_is_certain_but_what_everything_leads_to(
            shares in prop::collection::vec(0.01_f64..0.3, 1..3),
            holdout in 0.0_f64..0.3,
            number in 0_u32..1_000,
        ) {
            let in_force = policy("call", "", "");
            let arms: Vec<(f64, Treatment)> = shares.iter().map(|share| (*share, Treatment::Control)).collect();
            let layers = layers(&in_force, &in_force, vec![experiment("a", 3, &arms, holdout)]);
            let (action, propensity, _) = offered(&in_force, &layers, &format!("C-{number}"), (1e9, ""), true);
            let expected = if action == "none" { holdout } else { 1.0 - holdout };
            prop_assert!((propensity - expected).abs() < 1e-12);
            if holdout == 0.0 {
                prop_assert_eq!(propensity, 1.0);
            }
            let (_, broke, _) = offered(&in_force, &layers, &format!("C-{number}"), (0.0, ""), true);
            prop_assert_eq!(broke, 1.0, "without money everybody is offered nothing");
        }
    }
}
