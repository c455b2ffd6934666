//! Dry runs: decisions on record made again, before a model is staged or a policy put into force. Nothing is recorded or changed. To
//! the last bit, by what decided then, is the business of `replay`.

use super::{Engine, Error, shelf};
use crate::domain::policy::Policy;
use crate::domain::policy::condition::Known;
use crate::domain::policy::fit::Binding;
use crate::domain::record::Record;
use crate::domain::rollout::comparison::{Comparer, Comparison, Decided};
use crate::domain::score::Score;
use crate::ledger::{Inputs, Recorded};
use crate::model::Model;

/// Recorded decisions that are in memory at a time.
const PAGE: usize = 500;

impl Engine {
    /// Makes the last `count` decisions on record again by both models.
    pub(super) fn replay(
        &self,
        name: &str,
        live: &Model,
        next: &Model,
        policy: &Policy,
        count: usize,
    ) -> Result<Comparison, Error> {
        let [before, after] = [live, next].map(|model| policy.bind(&model.card().features).map_err(Error::Refused));
        let (before, after) = (before?, after?);
        let mut comparer = Comparer::new(policy, policy);
        self.each_recorded(name, count, |recorded| {
            let decided = self.again(&recorded.inputs, |record| {
                let [before, after] = [(live, &before), (next, &after)].map(|(model, binding)| {
                    Some(Decided::by(
                        policy,
                        score_of(model, record)?,
                        &binding.read(record).ok()?,
                        &record.customer_id,
                    ))
                });
                Some((before?, after?))
            });
            match decided {
                Some((before, after)) => comparer.add(before, after),
                None => comparer.skip(),
            }
        })?;
        Ok(comparer.end())
    }

    /// What `document` would have made of the last `count` decisions of `model`, against the policy in force. Where both look at the
    /// score alone, inputs that are erased or were not kept do not matter.
    ///
    /// Errors: [`Error::Refused`] with everything that is wrong with the document, or does not fit the models in the slots.
    pub fn try_policy(&self, model: &str, document: &str, count: usize) -> Result<Comparison, Error> {
        let after = shelf::parse_policy(document).map_err(Error::Refused)?;
        let (before, bindings) = {
            let held = self.deck(model)?.held();
            held.fit(&after)?;
            let champion = held.in_slot(held.slots.champion()).ok_or_else(|| self.unknown(model))?;
            let features = &champion.model.card().features;
            let bindings: Result<Vec<Binding>, _> =
                [&*held.policy, &after].iter().map(|policy| policy.bind(features)).collect();
            (held.policy.clone(), bindings.map_err(Error::Refused)?)
        };
        let is_plain = before.is_plain() && after.is_plain();
        let mut comparer = Comparer::new(&before, &after);
        self.each_recorded(model, count, |recorded| {
            let decided = Score::new(recorded.score).and_then(|score| {
                let by = |first: &[Known], second: &[Known], id: &str| {
                    (Decided::by(&before, score, first, id), Decided::by(&after, score, second, id))
                };
                if is_plain {
                    return Some(by(&[], &[], ""));
                }
                self.again(&recorded.inputs, |record| {
                    Some(by(&bindings[0].read(record).ok()?, &bindings[1].read(record).ok()?, &record.customer_id))
                })
            });
            match decided {
                Some((before, after)) => comparer.add(before, after),
                None => comparer.skip(),
            }
        })?;
        Ok(comparer.end())
    }

    /// Gives `each` the last `count` decisions by `model`, the newest first, some at a time.
    fn each_recorded(&self, model: &str, count: usize, mut each: impl FnMut(&Recorded)) -> Result<(), Error> {
        let (mut before, mut left) = (i64::MAX, count);
        while left > 0 {
            let page = self.ledger()?.last_decisions(model, before, left.min(PAGE))?;
            page.iter().for_each(&mut each);
            let Some(last) = page.last() else { break };
            (before, left) = (last.seq, left - page.len());
        }
        Ok(())
    }

    /// Asks `decide` of the record that was read from inputs on record; `None` where those are gone.
    fn again<T>(&self, inputs: &Inputs, decide: impl FnOnce(&Record) -> Option<T>) -> Option<T> {
        match inputs {
            Inputs::Kept(inputs) => (self.read)(inputs.as_slice()).ok().and_then(|record| decide(&record)),
            Inputs::NotKept | Inputs::Erased => None,
        }
    }
}

fn score_of(model: &Model, record: &Record) -> Option<Score> {
    let mut row = vec![0.0; model.schema().columns()];
    model.schema().vectorize(&record.features, &mut row).ok()?;
    model.score(&row).ok()
}
