//! One policy at work on decisions on record, with an account of its own that no customer's money is in.

use crate::domain::money::Money;
use crate::domain::policy::Policy;
use crate::domain::policy::assessment::{Assessment, Choice};
use crate::domain::policy::condition::Known;
use crate::domain::policy::reward::Valuation;
use crate::domain::policy::simulation::{PERIODS_MAX, Side, Spent, Told, Used};
use crate::domain::score::Score;
use crate::domain::statistics::fairness::Attribute;
use crate::domain::statistics::off_policy::Row;
use crate::engine::account::{Account, PACE_MS, Reserved};

/// How often a shadow price is moved while nothing is decided on: its law is linear over such a time.
const QUIET_MS: u64 = 3_600_000;

/// One of the two policies at work.
pub(super) struct Way<'p> {
    pub(super) policy: &'p Policy,
    account: Option<Account>,
    side: Side<'p>,
    spent_before: Money,
    periods: Vec<Spent>,
    periods_count: u64,
    /// What its decisions would have brought.
    pub(super) rows: Vec<Row>,
}

/// What a way decided.
pub(super) struct Chosen {
    pub(super) assessment: Assessment,
    pub(super) choice: Choice,
    /// What is offered to who is not held out.
    pub(super) place: usize,
}

impl<'p> Way<'p> {
    pub(super) fn new(policy: &'p Policy) -> Self {
        let (side, rows) = (Side::new(policy), Vec::new());
        Self { policy, account: None, side, spent_before: Money::ZERO, periods: Vec::new(), periods_count: 0, rows }
    }

    /// Opens its books as of the first decision.
    pub(super) fn open(&mut self, account: Option<Account>, at_ms: u64) {
        self.spent_before = account.as_ref().map_or(Money::ZERO, |account| account.balance(at_ms).spent);
        self.account = account;
        if let Some(account) = &self.account {
            account.pace(at_ms);
        }
    }

    /// Lets time pass from one decision to the next, as the engine's own tick does.
    pub(super) fn wait(&self, from_ms: u64, to_ms: u64) {
        let Some(account) = &self.account else { return };
        let mut at_ms = from_ms.saturating_add(PACE_MS);
        while at_ms < to_ms {
            account.pace(at_ms);
            at_ms = at_ms.saturating_add(QUIET_MS);
        }
        account.pace(to_ms);
    }

    /// Whether it has a budget.
    pub(super) fn has_account(&self) -> bool {
        self.account.is_some()
    }

    pub(super) fn decide(&mut self, score: Score, values: &[Known], customer_id: &str, at_ms: u64) -> Chosen {
        let assessment = self.policy.assess(score, values);
        let free = |price| assessment.choose(price, |_| true);
        let (choice, place) = if self.policy.holds_out(customer_id) {
            let price = self.account.as_ref().map_or(0.0, Account::shadow_price);
            (assessment.hold_out(), free(price).intervention)
        } else if let Some(account) = &self.account {
            let (choice, reserved) = account.choose(&assessment, at_ms, |_| true);
            reserved.into_iter().for_each(Reserved::keep);
            (choice, choice.intervention)
        } else {
            let choice = free(0.0);
            (choice, choice.intervention)
        };
        self.side.add(&assessment, &choice);
        self.book(choice.cost, at_ms);
        Chosen { assessment, choice, place }
    }

    fn book(&mut self, cost: Money, at_ms: u64) {
        let Some(budget) = self.policy.budget() else { return };
        let is_open = |spent: &&mut Spent| spent.ms.contains(&at_ms);
        // Times are nearly in order, so it is the last one or, at its edge, the one before.
        if let Some(spent) = self.periods.iter_mut().rev().take(2).find(is_open) {
            (spent.decisions, spent.cost) = (spent.decisions + 1, spent.cost.plus(cost));
            return;
        }
        if self.periods.len() == PERIODS_MAX {
            self.periods.remove(0);
        }
        self.periods.push(Spent { ms: budget.period.around(at_ms), decisions: 1, cost });
        self.periods_count += 1;
    }

    pub(super) fn end(self, fairness: Vec<Attribute>, alpha: f64) -> Told {
        let Self { policy, account, side, spent_before, periods, periods_count, rows } = self;
        let shadow_price = account.as_ref().map_or(0.0, Account::shadow_price);
        let used = policy.budget().map(|budget| Used { budget, spent_before, periods, periods_count, shadow_price });
        side.end(used, fairness, Valuation::of(&rows, alpha))
    }
}
