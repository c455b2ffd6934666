//! Slots: where the models of one name stand, in which role, and which moves are legal. Every move of an operator, and every one
//! that the service makes by itself, goes through [`Slots::apply`]; pure, so that a journal of moves gives the state again.

use serde::{Deserialize, Serialize};

use super::guardrail::Reading;
use super::moves::{Illegal, Move, VERBS};
use super::{End, Ended, Rollout};

/// A place for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// One of the two.
    Blue,
    /// The other.
    Green,
}

impl Colour {
    /// Both.
    pub const ALL: [Colour; 2] = [Colour::Blue, Colour::Green];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Colour::Blue => Colour::Green,
            Colour::Green => Colour::Blue,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Colour::Blue => "blue",
            Colour::Green => "green",
        }
    }
}

/// What a model in a slot is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It answers customers.
    Champion,
    /// It is under trial.
    Challenger,
    /// It was the champion before, and is kept warm for a rollback.
    Standby,
    /// It is loaded and probed, and waits.
    Staged,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Champion => "champion",
            Role::Challenger => "challenger",
            Role::Standby => "standby",
            Role::Staged => "staged",
        }
    }
}

/// A model in a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// Its version.
    pub version: String,
    /// The digest of its bundle.
    pub digest: String,
    /// What it is there for.
    pub role: Role,
    /// Since when it has that role, milliseconds since 1970.
    pub since_ms: u64,
    /// Who agreed to its promotion.
    pub approvals: Vec<Approval>,
}

/// Somebody's consent to a promotion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// In which role, such as `business_sponsor`.
    pub role: String,
    /// Who.
    pub by: String,
}

/// A policy by its name and the hash of its document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// The sha256 of its document, 64 hexadecimal digits.
    pub digest: String,
}

/// The slots of one model name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    /// What stands in blue.
    pub blue: Option<Placed>,
    /// What stands in green.
    pub green: Option<Placed>,
    /// The rollout that is going on.
    pub rollout: Option<Rollout>,
    /// The one that ended last.
    pub last_rollout: Option<Ended>,
    /// The policy in force.
    pub policy: PolicyRef,
    /// The one before, for an undo; none once it was undone.
    pub policy_before: Option<PolicyRef>,
}

impl Slots {
    /// The slots of a name that has just come into service.
    pub fn new(version: String, digest: String, policy: PolicyRef, at_ms: u64) -> Self {
        let placed = Placed { version, digest, role: Role::Champion, since_ms: at_ms, approvals: Vec::new() };
        Self { blue: Some(placed), green: None, rollout: None, last_rollout: None, policy, policy_before: None }
    }

    /// What stands in `colour`.
    pub fn placed(&self, colour: Colour) -> Option<&Placed> {
        match colour {
            Colour::Blue => self.blue.as_ref(),
            Colour::Green => self.green.as_ref(),
        }
    }

    fn place(&mut self, colour: Colour) -> &mut Option<Placed> {
        match colour {
            Colour::Blue => &mut self.blue,
            Colour::Green => &mut self.green,
        }
    }

    /// The slot of the champion.
    pub fn champion(&self) -> Colour {
        let is_green = self.green.as_ref().is_some_and(|placed| placed.role == Role::Champion);
        if is_green { Colour::Green } else { Colour::Blue }
    }

    /// What stands in the slot that is not the champion's.
    pub fn idle(&self) -> Option<&Placed> {
        self.placed(self.champion().other())
    }

    /// Every way in which this is no state that moves can lead to, for what was read from a disk.
    pub fn problems(&self) -> Vec<&'static str> {
        let mut problems = Vec::new();
        let champions = [&self.blue, &self.green].into_iter().flatten().filter(|placed| placed.role == Role::Champion);
        if champions.count() != 1 {
            problems.push("there is not exactly one champion");
        }
        if self.rollout.is_some() != (self.idle().map(|placed| placed.role) == Some(Role::Challenger)) {
            problems.push("there is a challenger without a rollout, or the other way round");
        }
        if self.rollout.as_ref().is_some_and(|rollout| rollout.step >= rollout.plan.steps.len()) {
            problems.push("the rollout is behind its last step");
        }
        problems
    }

    /// The names of the moves that are legal now; `approvals` are the roles that have to agree to a promotion.
    pub fn legal(&self, approvals: &[String]) -> Vec<&'static str> {
        let idle = self.idle().map(|placed| placed.role);
        let rollout = self.rollout.as_ref();
        let agreed = self.missing(approvals).is_empty();
        let waits = matches!(idle, Some(Role::Staged | Role::Challenger));
        let is_legal = |verb: &str| match verb {
            "stage" => matches!(idle, None | Some(Role::Staged)),
            "retire" => matches!(idle, Some(Role::Staged | Role::Standby)),
            "promote" => waits && agreed,
            "rollback" => matches!(idle, Some(Role::Standby | Role::Challenger)),
            "start" => idle == Some(Role::Staged),
            "pause" => rollout.is_some_and(|rollout| !rollout.paused),
            "resume" => rollout.is_some_and(|rollout| rollout.paused),
            "advance" => rollout.is_some_and(|rollout| !rollout.is_last()),
            "abort" => rollout.is_some(),
            "approve" => waits && !agreed,
            "apply_policy" => rollout.is_none(),
            "undo_policy" => rollout.is_none() && self.policy_before.is_some(),
            _ => false,
        };
        VERBS.into_iter().filter(|verb| is_legal(verb)).collect()
    }

    /// The roles of `required` that have not agreed to the promotion of the idle model.
    pub fn missing(&self, required: &[String]) -> Vec<String> {
        let given = self.idle().map_or(&[][..], |placed| &placed.approvals);
        let missing = required.iter().filter(|role| !given.iter().any(|approval| approval.role == **role));
        missing.cloned().collect()
    }

    /// The slots after `step`, which `by` asked for at `at_ms`; `approvals` are the roles that have to agree to a promotion, and
    /// `readings` the guardrails as they stand. The slots themselves stay as they are.
    ///
    /// Errors: [`Illegal`], with the moves that are legal.
    pub fn apply(
        &self,
        step: &Move,
        by: &str,
        at_ms: u64,
        approvals: &[String],
        readings: &[Reading],
    ) -> Result<Self, Illegal> {
        let illegal = |why: String| Illegal { why, legal: self.legal(approvals) };
        let verb = step.verb();
        if !self.legal(approvals).contains(&verb) {
            return Err(illegal(self.why_not(step, approvals)));
        }
        let mut next = self.clone();
        let champion = self.champion();
        let idle = champion.other();
        let end = |next: &mut Self, end| {
            if let Some((rollout, placed)) = next.rollout.take().zip(next.place(idle).as_ref()) {
                let (version, readings) = (placed.version.clone(), readings.to_vec());
                next.last_rollout = Some(Ended { id: rollout.id, version, end, at_ms, step: rollout.step, readings });
            }
        };
        let become_role = |next: &mut Self, colour, role| {
            if let Some(placed) = next.place(colour) {
                (placed.role, placed.since_ms) = (role, at_ms);
                placed.approvals.clear();
            }
        };
        match step {
            Move::Stage { version, .. } if self.placed(champion).is_some_and(|placed| placed.version == *version) => {
                return Err(illegal(format!("{version} is the champion")));
            }
            Move::Stage { version, digest } => {
                let (version, digest) = (version.clone(), digest.clone());
                *next.place(idle) =
                    Some(Placed { version, digest, role: Role::Staged, since_ms: at_ms, approvals: Vec::new() });
            }
            Move::Retire => *next.place(idle) = None,
            Move::Promote { passed } => {
                if self.rollout.is_some() && !passed {
                    let why = "its rollout has not passed to its end yet; wait, or force it".to_owned();
                    let legal = self.legal(approvals).into_iter().filter(|verb| *verb != "promote").collect();
                    return Err(Illegal { why, legal });
                }
                let given = self.idle().map_or(&[][..], |placed| &placed.approvals);
                if !approvals.is_empty() && given.iter().all(|approval| approval.by == by) {
                    return Err(illegal(format!("the consent is of {by} alone, who cannot promote by it")));
                }
                end(&mut next, End::Promoted);
                become_role(&mut next, idle, Role::Champion);
                become_role(&mut next, champion, Role::Standby);
            }
            Move::RollBack if self.rollout.is_none() => {
                become_role(&mut next, idle, Role::Champion);
                become_role(&mut next, champion, Role::Staged);
            }
            Move::RollBack | Move::Abort => {
                end(&mut next, End::Aborted);
                become_role(&mut next, idle, Role::Staged);
            }
            Move::Fail => {
                end(&mut next, End::RolledBack);
                become_role(&mut next, idle, Role::Staged);
            }
            Move::Start { id, plan } => {
                let (id, plan) = (id.clone(), plan.clone());
                let (step_since_ms, since_ms, before_ms) = (at_ms, at_ms, Vec::new());
                next.rollout = Some(Rollout { id, plan, step: 0, step_since_ms, since_ms, before_ms, paused: false });
                if let Some(placed) = next.place(idle) {
                    // What was agreed to while it waited stays agreed to.
                    (placed.role, placed.since_ms) = (Role::Challenger, at_ms);
                }
            }
            Move::Pause | Move::Resume | Move::Advance => {
                if let Some(rollout) = &mut next.rollout {
                    match step {
                        Move::Advance => {
                            rollout.step += 1;
                            rollout.before_ms.push(std::mem::replace(&mut rollout.step_since_ms, at_ms));
                        }
                        _ => rollout.paused = *step == Move::Pause,
                    }
                }
            }
            Move::Approve { role } => {
                let given = self.idle().map_or(&[][..], |placed| &placed.approvals);
                if !self.missing(approvals).contains(role) {
                    let missing = self.missing(approvals).join(", ");
                    return Err(illegal(format!("nobody has to agree as \"{role}\"; still missing: {missing}")));
                }
                if given.iter().any(|approval| approval.by == by) {
                    return Err(illegal(format!("{by} agreed already, and a second person is asked for")));
                }
                let approval = Approval { role: role.clone(), by: by.to_owned() };
                if let Some(placed) = next.place(idle) {
                    placed.approvals.push(approval);
                }
            }
            // Else an apply that is sent twice would take away the way back.
            Move::ApplyPolicy(policy) if *policy == self.policy => {
                return Err(illegal("this policy is in force".to_owned()));
            }
            Move::ApplyPolicy(policy) => {
                next.policy_before = Some(std::mem::replace(&mut next.policy, policy.clone()));
            }
            Move::UndoPolicy => {
                // Nothing is left to undo to: undoing needs no role, and twice would bring back what was taken out.
                if let Some(before) = next.policy_before.take() {
                    next.policy = before;
                }
            }
        }
        Ok(next)
    }

    /// Why a move that is not legal is not.
    fn why_not(&self, step: &Move, approvals: &[String]) -> String {
        let idle = self.idle();
        let missing = self.missing(approvals);
        match (step, idle.map(|placed| placed.role)) {
            (Move::Promote { .. }, Some(Role::Staged | Role::Challenger)) => {
                format!("it still needs the approval of: {}", missing.join(", "))
            }
            (Move::Approve { .. }, Some(Role::Staged | Role::Challenger)) => "no approval is missing".to_owned(),
            (Move::Stage { .. }, Some(Role::Standby)) => {
                "the idle slot keeps the champion of before for a rollback; retire it first".to_owned()
            }
            (_, Some(Role::Challenger)) if self.rollout.is_some() => match step {
                Move::Pause => "the rollout is paused".to_owned(),
                Move::Resume => "the rollout is not paused".to_owned(),
                Move::Advance => "the rollout is at its last step; promote or abort it".to_owned(),
                _ => "a rollout is going on".to_owned(),
            },
            (Move::Pause | Move::Resume | Move::Advance | Move::Abort | Move::Fail, _) => {
                "no rollout is going on".to_owned()
            }
            (Move::UndoPolicy, _) => "no other policy was in force before".to_owned(),
            (_, None) => "the idle slot is empty; stage a model first".to_owned(),
            (Move::RollBack, Some(_)) => "the idle model was not the champion before".to_owned(),
            (_, Some(role)) => format!("the idle slot holds a model as {}", role.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::rollout;
    use proptest::prelude::*;

    fn policy(digest: &str) -> PolicyRef {
        PolicyRef { name: "p".to_owned(), digest: digest.to_owned() }
    }

    fn slots() -> Slots {
        Slots::new("1".to_owned(), "d1".to_owned(), policy("a"), 0)
    }

    fn stage(version: &str) -> Move {
        Move::Stage { version: version.to_owned(), digest: format!("d{version}") }
    }

    fn start() -> Move {
        Move::Start { id: "r".to_owned(), plan: rollout::tests::plan(&[0.1, 0.5, 1.0], false) }
    }

    fn go(slots: &Slots, moves: &[Move]) -> Slots {
        moves.iter().fold(slots.clone(), |slots, step| slots.apply(step, "ops", 1, &[], &[]).expect("a legal move"))
    }

    fn roles(slots: &Slots) -> (Option<Role>, Option<Role>) {
        (slots.blue.as_ref().map(|placed| placed.role), slots.green.as_ref().map(|placed| placed.role))
    }

    #[test]
    fn blue_green_there_and_back() {
        let promoted = go(&slots(), &[stage("2"), Move::Promote { passed: false }]);
        assert_eq!(roles(&promoted), (Some(Role::Standby), Some(Role::Champion)));
        let back = go(&promoted, &[Move::RollBack]);
        assert_eq!(roles(&back), (Some(Role::Champion), Some(Role::Staged)));
        let again = go(&back, &[Move::Promote { passed: false }]);
        assert_eq!(roles(&again), roles(&promoted));
        let refused = again.apply(&stage("3"), "ops", 1, &[], &[]).expect_err("the standby is in the way");
        assert_eq!(refused.legal, ["retire", "rollback", "apply_policy"]);
        assert!(refused.why.contains("retire it first"), "{refused}");
        assert_eq!(roles(&go(&again, &[Move::Retire, stage("3")])), (Some(Role::Staged), Some(Role::Champion)));
    }

    #[test]
    fn a_rollout_is_promoted_by_force_or_right_only() {
        let running = go(&slots(), &[stage("2"), start(), Move::Advance, Move::Pause]);
        assert_eq!((running.rollout.as_ref().expect("a rollout").step, roles(&running).1), (1, Some(Role::Challenger)));
        assert!(running.apply(&Move::Promote { passed: false }, "ops", 1, &[], &[]).is_err());
        let promoted = go(&running, &[Move::Promote { passed: true }]);
        assert_eq!(promoted.last_rollout.as_ref().map(|ended| ended.end), Some(End::Promoted));
        let failed = go(&running, &[Move::Fail]);
        assert_eq!(failed.last_rollout.as_ref().map(|ended| (ended.end, ended.step)), Some((End::RolledBack, 1)));
        assert_eq!(roles(&failed), (Some(Role::Champion), Some(Role::Staged)));
    }

    #[test]
    fn two_people_have_to_agree_where_two_are_asked_for() {
        let required = ["data_scientist".to_owned(), "business_sponsor".to_owned()];
        let staged = go(&slots(), &[stage("2")]);
        let apply = |slots: &Slots, step: &Move, by: &str| slots.apply(step, by, 1, &required, &[]);
        let agree = |role: &str| Move::Approve { role: role.to_owned() };
        let promote = Move::Promote { passed: false };
        assert!(apply(&staged, &promote, "a").is_err());
        let once = apply(&staged, &agree("data_scientist"), "a").expect("agreed");
        assert!(apply(&once, &agree("business_sponsor"), "a").is_err(), "the same person");
        assert!(apply(&once, &agree("king"), "b").is_err(), "no such role");
        assert!(apply(&once, &promote, "a").is_err());
        let twice = apply(&once, &agree("business_sponsor"), "b").expect("agreed");
        let promoted = apply(&twice, &promote, "a").expect("promoted");
        let again = apply(&promoted, &Move::RollBack, "a").expect("a rollback needs nobody");
        assert!(apply(&again, &promote, "a").is_err(), "consent is for one promotion");
    }

    #[test]
    fn a_policy_goes_into_force_and_back() {
        let applied = go(&slots(), &[Move::ApplyPolicy(policy("b"))]);
        assert_eq!((applied.policy.digest.as_str(), applied.policy_before.clone()), ("b", Some(policy("a"))));
        let undone = go(&applied, &[Move::UndoPolicy]);
        assert_eq!((undone.policy.clone(), undone.policy_before.clone()), (policy("a"), None));
        assert!(
            undone.apply(&Move::UndoPolicy, "ops", 1, &[], &[]).is_err(),
            "undoing needs no role, and must not bring back"
        );
        assert!(applied.apply(&Move::ApplyPolicy(policy("b")), "ops", 1, &[], &[]).is_err(), "sent twice");
    }

    fn any_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            (2..9_u8).prop_map(|version| stage(&version.to_string())),
            any::<bool>().prop_map(|passed| Move::Promote { passed }),
            Just(start()),
            prop::sample::select(vec![
                Move::Retire,
                Move::RollBack,
                Move::Pause,
                Move::Resume,
                Move::Advance,
                Move::Abort,
                Move::Fail,
                Move::Approve { role: "sponsor".to_owned() },
                Move::ApplyPolicy(policy("b")),
                Move::UndoPolicy,
            ]),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_tried_the_state_stays_legal(
            moves in prop::collection::vec(any_move(), 0..60), approvals in any::<bool>(),
        ) {
            let required = if approvals { vec!["sponsor".to_owned()] } else { Vec::new() };
            let mut slots = slots();
            for (at, step) in moves.iter().enumerate() {
                let champion = slots.placed(slots.champion()).cloned().expect("a champion");
                match slots.apply(step, &format!("p{at}"), at as u64, &required, &[]) {
                    Err(illegal) => {
                        let legal = slots.legal(&required);
                        prop_assert!(illegal.legal.iter().all(|verb| legal.contains(verb)));
                    }
                    Ok(next) => {
                        prop_assert!(next.problems().is_empty(), "{:?} after {:?}", next.problems(), step);
                        let after = next.placed(next.champion()).expect("a champion");
                        let flips = matches!(step, Move::Promote { .. } | Move::RollBack);
                        prop_assert!(flips || after.version == champion.version);
                        if let (Move::Promote { .. }, true) = (step, slots.rollout.is_none() || required.is_empty()) {
                            // What was promoted can be taken back, and that restores the champion.
                            let back = next.apply(&Move::RollBack, "ops", 0, &required, &[]).expect("legal");
                            prop_assert_eq!(&back.placed(back.champion()).expect("a champion").version, &champion.version);
                        }
                        let text = serde_json::to_string(&next).expect("plain data");
                        prop_assert_eq!(&serde_json::from_str::<Slots>(&text).expect("the same"), &next);
                        slots = next;
                    }
                }
            }
        }
    }
}
