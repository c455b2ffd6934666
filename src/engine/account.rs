//! The spend account of a model name: what the budget of its policy has left, taken before an intervention is offered and given back when
//! the offer could not be recorded. The ledger is the one home of what was spent; how the price moves is in `domain::policy::pacing`.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::capacity::Place;
use super::{Error, shelf};
use crate::domain::money::Money;
use crate::domain::policy::assessment::{Assessment, Choice, Offer};
use crate::domain::policy::budget::Budget;
use crate::domain::policy::pacing::Pacer;
use crate::domain::policy::{Objective, Policy};
use crate::ledger::{self, Ledger};

/// How often the price moves at most, in milliseconds.
pub(super) const PACE_MS: u64 = 1_000;

/// How a budget stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Balance {
    /// What may be spent in each period.
    pub budget: Budget,
    /// ISO 4217.
    pub currency: String,
    /// The period, as milliseconds since 1970, its end excluded.
    pub period_ms: Range<u64>,
    /// What is spent of it.
    pub spent: Money,
    /// By how much a unit of money is dearer than itself.
    pub shadow_price: f64,
}

impl Balance {
    /// The share of the period that has gone by at `now_ms` (milliseconds since 1970), 0 to 1.
    pub(super) fn elapsed(&self, now_ms: u64) -> f64 {
        let length = self.period_ms.end.saturating_sub(self.period_ms.start).max(1);
        now_ms.saturating_sub(self.period_ms.start).min(length) as f64 / length as f64
    }
}

/// The account of a budget: never more than the amount, whoever asks at the same time.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    currency: String,
    /// Shared with the account that follows, where that counts the same periods.
    span: Arc<ArcSwap<Span>>,
    /// The bits of the shadow price.
    price: AtomicU64,
    /// Of a policy whose choices a price can move.
    pace: Option<Mutex<Pacer>>,
}

/// What was spent in one period.
#[derive(Debug)]
struct Span {
    ms: Range<u64>,
    spent: AtomicI64,
    /// What was asked for since the price last moved, granted or not.
    wanted: AtomicI64,
}

impl Span {
    fn new(ms: Range<u64>, spent: Money) -> Self {
        Self { ms, spent: AtomicI64::new(spent.micros()), wanted: AtomicI64::new(0) }
    }

    /// Takes `cost` out of what `amount` has left.
    fn reserve(self: &Arc<Self>, cost: Money, amount: Money) -> Option<Reserved> {
        let cost = cost.micros();
        let within = |spent: i64| spent.checked_add(cost).filter(|spent| *spent <= amount.micros());
        // Nothing else is read by what this says: only the sum has to be right.
        let taken = self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        taken.ok().map(|_| Reserved { span: Some(self.clone()), cost, place: None })
    }
}

/// Money that is set aside for a decision, and a place that is taken for it; both go back when this is dropped, unless it was kept.
#[must_use]
#[derive(Debug, Default)]
pub(super) struct Reserved {
    span: Option<Arc<Span>>,
    cost: i64,
    place: Option<Place>,
}

impl Reserved {
    /// Takes `cost` out of it, for one decision of many; `None` where there is less.
    pub(super) fn split(&mut self, cost: Money) -> Option<Self> {
        let cost = cost.micros();
        self.cost = self.cost.checked_sub(cost).filter(|left| *left >= 0)?;
        Some(Self { span: self.span.clone(), cost, place: None })
    }

    /// Gives back all but `cost`, which is what was wanted of it.
    pub(super) fn shrink(&mut self, cost: Money) {
        let rest = self.cost.saturating_sub(cost.micros()).max(0);
        self.cost -= rest;
        if let Some(span) = &self.span {
            span.spent.fetch_sub(rest, Ordering::Relaxed);
            span.wanted.fetch_add(self.cost, Ordering::Relaxed);
        }
    }

    /// The same with a place; nothing, where there is neither.
    pub(super) fn with(reserved: Option<Self>, place: Option<Place>) -> Option<Self> {
        if place.is_none() {
            return reserved;
        }
        let mut reserved = reserved.unwrap_or_default();
        reserved.place = place;
        Some(reserved)
    }

    /// How much it is.
    pub(super) fn amount(&self) -> Money {
        Money::from_micros(self.cost)
    }

    /// The decision is with the ledger: the money is spent and the place is gone, whatever comes.
    pub(super) fn keep(mut self) {
        self.cost = 0;
        self.place.take().into_iter().for_each(Place::keep);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(span) = self.span.as_ref().filter(|_| self.cost > 0) {
            span.spent.fetch_sub(self.cost, Ordering::Relaxed);
        }
    }
}

impl Account {
    /// The account of the budget of `policy` for the model `name`, if it has one. It goes on where the account `before` stands when
    /// that counts the same periods; otherwise what is spent is what the ledger says.
    ///
    /// Errors: a ledger that cannot be read.
    pub(super) fn open(
        policy: &Policy,
        name: &str,
        ledger: Option<&Ledger>,
        now_ms: u64,
        before: Option<&Self>,
    ) -> Result<Option<Self>, Error> {
        let Some(budget) = policy.budget() else { return Ok(None) };
        let same = |before: &&Self| before.budget.period == budget.period && before.currency == policy.currency();
        if let Some(before) = before.filter(same).filter(|before| !before.is_closed()) {
            return Ok(Some(Self::new(policy, budget, before.span.clone(), before.shadow_price())));
        }
        let ms = budget.period.around(now_ms);
        let (spent, price) = match ledger {
            Some(ledger) => spent(ledger, name, policy.currency(), ms.start as i64..i64::MAX)?,
            None => (Some(Money::ZERO), 0.0),
        };
        let spent = spent.unwrap_or(budget.amount);
        Ok(Some(Self::new(policy, budget, Arc::new(ArcSwap::from_pointee(Span::new(ms, spent))), price)))
    }

    /// The account that the budget of `policy` would have had for the model `name` at `at_ms`, had the policy come into force then: what was
    /// spent of the period before is what the ledger says.
    ///
    /// Errors: a ledger that cannot be read.
    pub(super) fn as_of(policy: &Policy, name: &str, ledger: &Ledger, at_ms: u64) -> Result<Option<Self>, Error> {
        let Some(budget) = policy.budget() else { return Ok(None) };
        let ms = budget.period.around(at_ms);
        let (spent, price) = spent(ledger, name, policy.currency(), ms.start as i64..at_ms as i64)?;
        let spent = spent.unwrap_or(budget.amount);
        Ok(Some(Self::new(policy, budget, Arc::new(ArcSwap::from_pointee(Span::new(ms, spent))), price)))
    }

    /// The account of a budget of which it is not known what is left: nothing is, until a policy is applied or the service started
    /// again.
    pub(super) fn closed(policy: &Policy) -> Option<Self> {
        let budget = policy.budget()?;
        let span = Span::new(0..u64::MAX, budget.amount);
        Some(Self::new(policy, budget, Arc::new(ArcSwap::from_pointee(span)), 0.0))
    }

    fn new(policy: &Policy, budget: Budget, span: Arc<ArcSwap<Span>>, price: f64) -> Self {
        let ms = span.load().ms.clone();
        let pacer = match policy.objective() {
            Objective::ExpectedValue => Pacer::new(budget.amount, ms.start, ms.end, price),
            Objective::Tier => None,
        };
        let price = pacer.as_ref().map_or(0.0, Pacer::shadow_price);
        let currency = policy.currency().to_owned();
        Self { budget, currency, span, price: AtomicU64::new(price.to_bits()), pace: pacer.map(Mutex::new) }
    }

    fn is_closed(&self) -> bool {
        self.span.load().ms == (0..u64::MAX)
    }

    pub(super) fn shadow_price(&self) -> f64 {
        f64::from_bits(self.price.load(Ordering::Relaxed))
    }

    /// The period that `at_ms` is in, which begins with its first decision. What comes late for a period that is over finds none: the
    /// ledger would count it there, and there the books are closed.
    fn span_at(&self, at_ms: u64) -> Option<Arc<Span>> {
        let span = self.span.load_full();
        if at_ms < span.ms.end {
            return span.ms.contains(&at_ms).then_some(span);
        }
        let next = Arc::new(Span::new(self.budget.period.around(at_ms), Money::ZERO));
        self.span.rcu(|span| if at_ms < span.ms.end { span.clone() } else { next.clone() });
        Some(self.span.load_full()).filter(|span| span.ms.contains(&at_ms))
    }

    /// What there is left for a decision at `at_ms`.
    pub(super) fn left(&self, at_ms: u64) -> Money {
        let spent = |span: Arc<Span>| Money::from_micros(span.spent.load(Ordering::Relaxed));
        self.span_at(at_ms).map_or(Money::ZERO, |span| self.budget.amount.less(spent(span)))
    }

    /// Chooses what there is money for, and sets that aside. `has_place` is asked first.
    pub(super) fn choose(
        &self,
        assessment: &Assessment,
        at_ms: u64,
        mut has_place: impl FnMut(&Offer) -> bool,
    ) -> (Choice, Option<Reserved>) {
        let span = self.span_at(at_ms);
        let (mut reserved, mut is_first) = (None, true);
        let choice = assessment.choose(self.shadow_price(), |offer| {
            if !has_place(offer) {
                return false;
            }
            if offer.cost <= Money::ZERO {
                return true;
            }
            let Some(span) = &span else { return false };
            if std::mem::take(&mut is_first) {
                span.wanted.fetch_add(offer.cost.micros(), Ordering::Relaxed);
            }
            reserved = span.reserve(offer.cost, self.budget.amount);
            reserved.is_some()
        });
        (choice, reserved)
    }

    /// Sets aside what is left, at most `up_to`, for many decisions at once; `None` where the books of that time are closed.
    pub(super) fn set_aside(&self, up_to: Money, at_ms: u64) -> Option<Reserved> {
        let span = self.span_at(at_ms)?;
        let mut cost = 0;
        let within = |spent: i64| {
            cost = up_to.less(Money::ZERO).min(self.budget.amount.less(Money::from_micros(spent))).micros();
            Some(spent + cost)
        };
        let _ = span.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        Some(Reserved { span: Some(span), cost, place: None })
    }

    /// Moves the price with the time and with what was wanted.
    pub(super) fn pace(&self, now_ms: u64) {
        let (Some(pacer), Some(span)) = (&self.pace, self.span_at(now_ms)) else { return };
        let mut pacer = pacer.lock().unwrap_or_else(PoisonError::into_inner);
        if pacer.period_ms() != span.ms {
            let (amount, price) = (self.budget.amount, pacer.shadow_price());
            let next = match pacer.period_ms().end == span.ms.start {
                true => pacer.clone().next(amount, span.ms.end),
                false => Pacer::new(amount, span.ms.start, span.ms.end, price),
            };
            let Some(next) = next else { return };
            *pacer = next;
        }
        if now_ms < pacer.updated_ms().saturating_add(PACE_MS) {
            return;
        }
        let wanted = Money::from_micros(span.wanted.swap(0, Ordering::Relaxed));
        pacer.observe(wanted, Money::from_micros(span.spent.load(Ordering::Relaxed)));
        pacer.update(now_ms);
        self.price.store(pacer.shadow_price().to_bits(), Ordering::Relaxed);
    }

    /// How it stands.
    pub(super) fn balance(&self, now_ms: u64) -> Balance {
        let span = self.span_at(now_ms).unwrap_or_else(|| self.span.load_full());
        Balance {
            budget: self.budget,
            currency: self.currency.clone(),
            period_ms: span.ms.clone(),
            spent: Money::from_micros(span.spent.load(Ordering::Relaxed)),
            shadow_price: self.shadow_price(),
        }
    }
}

/// What the decisions of `name` in `span_ms` cost in `currency`, by the policies that made them, where that can still be known, and the shadow
/// price of the last.
fn spent(ledger: &Ledger, name: &str, currency: &str, span_ms: Range<i64>) -> Result<(Option<Money>, f64), Error> {
    let spending = ledger.spending(name, span_ms)?;
    if !spending.is_whole {
        // Never more than there is: of what cannot be counted it is taken that it was all.
        tracing::error!(
            model = name,
            "decisions of this period have been removed by retention, and with them what they cost: nothing more is spent in it"
        );
        return Ok((None, 0.0));
    }
    let mut micros = 0_i64;
    for group in &spending.groups {
        let broken = |problem: &str| ledger::Error::Broken(format!("a policy of \"{name}\" on record: {problem}"));
        let policy = shelf::parse_policy(&group.policy_document).map_err(|problems| broken(&problems.join("; ")))?;
        if policy.currency() != currency {
            continue;
        }
        let known = policy.interventions().iter().find(|known| known.action == group.action);
        let cost = known.ok_or_else(|| broken(&format!("it has no \"{}\"", group.action)))?.cost.micros();
        micros = micros.saturating_add(cost.saturating_mul(group.count));
    }
    let price = spending.shadow_price.filter(|price| (0.0..=1e12).contains(price));
    Ok((Some(Money::from_micros(micros)), price.unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::document;
    use crate::domain::score::Score;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000;

    fn policy(amount: f64, objective: &str) -> Policy {
        let (value, tier) = match objective {
            "tier" => ("", "intervention = \"call\"\nfallback = [\"mail\"]"),
            _ => ("value_at_stake = 1000", ""),
        };
        let document = format!(
            r#"
name = "p"
description = ""
currency = "EUR"
objective = "{objective}"
{value}
[[tiers]]
name = "all"
score = "[0, 1]"
{tier}
[interventions.call]
description = ""
cost = 20.25
expected_effectiveness = 0.5
[interventions.mail]
description = ""
cost = 1.5
expected_effectiveness = 0.1
[budget]
amount = {amount:?}
period = "day"
"#
        );
        document::parse(&document, "v").unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    }

    fn account(policy: &Policy) -> Account {
        Account::open(policy, "m", None, DAY, None).expect("no ledger to fail").expect("a budget")
    }

    fn assess(policy: &Policy) -> Assessment {
        policy.assess(Score::new(0.5).expect("a score"), &[])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn sixteen_threads_never_spend_more_than_the_budget(micros in 0_i64..4_000_000_000, objective in prop::sample::select(vec!["tier", "expected_value"]), lost in 2_u64..9) {
            let policy = policy(Money::from_micros(micros).units(), objective);
            let account = account(&policy);
            let amount = policy.budget().expect("a budget").amount;
            let kept = AtomicI64::new(0);
            std::thread::scope(|scope| {
                for thread in 0..16_u64 {
                    let (account, policy, kept) = (&account, &policy, &kept);
                    scope.spawn(move || {
                        for turn in 0..60_u64 {
                            let (choice, reserved) = account.choose(&assess(policy), DAY + turn, |_| true);
                            assert!(account.balance(DAY).spent <= amount);
                            assert_eq!(choice.cost > Money::ZERO, reserved.is_some());
                            // Some are not recorded: what they had goes back.
                            if let Some(reserved) = reserved.filter(|_| (thread + turn) % lost > 0) {
                                kept.fetch_add(choice.cost.micros(), Ordering::Relaxed);
                                reserved.keep();
                            }
                        }
                    });
                }
            });
            let spent = account.balance(DAY).spent;
            prop_assert_eq!(spent.micros(), kept.load(Ordering::Relaxed), "what was given back is there again");
            prop_assert!(spent <= amount);
        }
    }

    #[test]
    fn the_choice_steps_down_to_what_there_is_money_for() {
        let policy = policy(22.0, "tier");
        let account = account(&policy);
        let choose = |at_ms| {
            let (choice, reserved) = account.choose(&assess(&policy), at_ms, |_| true);
            reserved.into_iter().for_each(Reserved::keep);
            let rules = policy.rules(0, &assess(&policy).trace, &choice).join(" ");
            format!("{} {rules}", policy.interventions()[choice.intervention].action)
        };
        assert_eq!(choose(DAY), "call objective:tier");
        assert_eq!(choose(DAY + 1), "mail budget:refused:call fallback:mail objective:tier");
        assert_eq!(choose(DAY + 2), "none budget:refused:call budget:refused:mail fallback:none objective:tier");
        assert_eq!(choose(2 * DAY), "call objective:tier", "the next day has its own money");
        assert!(choose(2 * DAY - 1).starts_with("none "), "the books of the day before are closed");
        let balance = account.balance(2 * DAY);
        assert_eq!((balance.spent.units(), balance.period_ms), (20.25, 2 * DAY..3 * DAY));
    }

    #[test]
    fn the_price_rises_with_demand_and_goes_over_to_the_next_account() {
        let policy = policy(100.0, "expected_value");
        let account = account(&policy);
        for second in 0..600 {
            let at_ms = DAY + second * 1_000;
            account.pace(at_ms);
            let (choice, reserved) = account.choose(&assess(&policy), at_ms, |_| true);
            reserved.into_iter().for_each(Reserved::keep);
            assert_eq!(choice.shadow_price, account.shadow_price());
        }
        let price = account.shadow_price();
        assert!(price > 1.0, "{price}");
        let (choice, _reserved) = account.choose(&assess(&policy), DAY + 600_000, |_| true);
        assert!(choice.priced_out || choice.stepped_down(), "{choice:?}");
        let next = Account::open(&policy, "m", None, DAY, Some(&account)).expect("no ledger").expect("a budget");
        assert_eq!((next.shadow_price(), next.balance(DAY).spent), (price, account.balance(DAY).spent));
        next.pace(2 * DAY);
        assert_eq!(next.balance(2 * DAY).spent, Money::ZERO);
        let closed = Account::closed(&policy).expect("a budget");
        assert_eq!(closed.choose(&assess(&policy), DAY, |_| true).0.intervention, 0);
        let opened = Account::open(&policy, "m", None, DAY, Some(&closed)).expect("no ledger").expect("a budget");
        assert_eq!(opened.balance(DAY).spent, Money::ZERO, "a closed account is no one to go on from");
    }
}
