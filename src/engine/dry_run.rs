//! Dry runs: decisions on record made again, before a model is staged or a policy put into force. Nothing is recorded or changed. To
//! the last bit, by what decided then, is the business of `replay`.

use super::{Engine, Error, shelf};
use crate::domain::comparison::{Comparer, Comparison};
use crate::domain::policy::Policy;
use crate::domain::record::Record;
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
        let mut comparer = Comparer::new(policy, policy);
        self.each_recorded(name, count, |recorded| {
            let scores = match &recorded.inputs {
                Inputs::Kept(inputs) => (self.read)(inputs.as_slice())
                    .ok()
                    .and_then(|record| Some((score_of(live, &record)?, score_of(next, &record)?))),
                Inputs::NotKept | Inputs::Erased => None,
            };
            match scores {
                Some((before, after)) => comparer.add(before, after),
                None => comparer.skip(),
            }
        })?;
        Ok(comparer.end())
    }

    /// What `document` would have made of the last `count` decisions of `model`, against the policy in force.
    pub fn try_policy(&self, model: &str, document: &str, count: usize) -> Result<Comparison, Error> {
        let before = self.deck(model)?.held().policy.clone();
        let after = shelf::parse_policy(document).map_err(Error::Refused)?;
        let mut comparer = Comparer::new(&before, &after);
        self.each_recorded(model, count, |recorded| match Score::new(recorded.score) {
            Some(score) => comparer.add(score, score),
            None => comparer.skip(),
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
}

fn score_of(model: &Model, record: &Record) -> Option<Score> {
    let mut row = vec![0.0; model.schema().columns()];
    model.schema().vectorize(&record.features, &mut row).ok()?;
    model.score(&row).ok()
}
