//! A score that is waited for: that of a slow model, which has threads of its own (`model::turns`). Everything else about a decision is
//! synchronous, and in `decide`, which is given what came of this.

use std::time::{Duration, Instant};

use smallvec::smallvec;

use super::decide::{Asked, encode};
use super::reasons::own_row;
use super::serving::{Scored, Serving};
use super::shadow::Row;
use super::{Engine, Error};
use crate::domain::decision::Arm;
use crate::domain::record::Record;

/// A score that was waited for, to be decided on by the same snapshot.
#[derive(Debug)]
pub struct Turn {
    pub(super) scored: Scored,
    /// How long it took to come, the wait included.
    pub(super) took: Duration,
}

impl Engine {
    /// The score of `record` where a model of `serving` is slow ([`Serving::takes_turns`]): asked for, and waited for without holding the
    /// thread. Who drops this has no turn any more. `addressed` is the arm that the caller insists on, `until` says how long it waits, if that
    /// is known.
    ///
    /// Errors: as those of [`Engine::decide`], and [`model::Error::Full`](crate::model::Error::Full) where too many wait.
    pub async fn turn(
        &self,
        serving: &Serving,
        record: &Record<'_>,
        addressed: Option<Arm>,
        until: Option<Instant>,
    ) -> Result<Turn, Error> {
        let begun = Instant::now();
        let mut row: Row = smallvec![0.0; serving.model.schema().columns()];
        let who = {
            let values = encode(serving, record, &mut row).map_err(Error::Invalid)?;
            serving.who(&record.customer_id, &values)
        };
        let mut asked = Asked::new(serving, who, addressed)?;
        asked.waits(begun, until);
        let answer = match own_row(serving, record, &row, asked.arm) {
            Ok(own) => serving.judge_in_turn(asked.arm, &own).await.map_err(Error::Model),
            Err(error) => Err(error),
        };
        let scored = match asked.settle(answer)? {
            Some(scored) => scored,
            None => serving.judge_in_turn(Arm::Champion, &row).await?,
        };
        Ok(Turn { scored, took: begun.elapsed() })
    }
}
