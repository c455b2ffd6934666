//! Dry runs: decisions on record made again by another model, before it is staged. Nothing is recorded or changed. Another policy is
//! tried in `simulate`; to the last bit, by what decided then, is the business of `replay`.

use super::{Engine, Error};
use crate::domain::bundle::uplift::Uplifts;
use crate::domain::policy::Policy;
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
        let [before, after] = [live, next].map(|model| policy.bind_to(model.card()).map_err(Error::Refused));
        let (before, after) = (before?, after?);
        let mut comparer = Comparer::new(policy, policy);
        self.each_recorded(name, count, |recorded| {
            let decided = self.again(&recorded.inputs, |record| {
                let [before, after] = [(live, &before), (next, &after)].map(|(model, binding)| {
                    let (score, uplifts) = judge(model, binding, record)?;
                    let values = binding.read_with(record, &uplifts).ok()?;
                    Some(Decided::by(policy, score, &values, &record.customer_id))
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

fn judge(model: &Model, binding: &Binding, record: &Record) -> Option<(Score, Uplifts)> {
    let mut row = vec![0.0; model.schema().columns()];
    model.schema().vectorize(&record.features, &mut row).ok()?;
    let uplifts = if binding.wants_uplifts() { model.uplifts(&row).ok()? } else { Uplifts::new() };
    Some((model.score(&row).ok()?, uplifts))
}
