//! Requests for a new model on record: each cause before it is sent, with the very message, and later what became of it. When one is made is
//! decided above.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Error;
use crate::domain::retraining::Cause;

/// Entries about one cause: it is made, and its sending ends, perhaps once more after a restart.
const ENTRIES_OF_ONE: usize = 4;

/// What is said of a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It is to be sent.
    Due,
    /// It was sent, and its receipt confirmed.
    Delivered,
    /// It was tried as often as may be.
    GivenUp,
}

/// One entry about a cause.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// The cause.
    pub cause: Cause,
    /// When it was seen, or its sending ended, milliseconds since 1970.
    pub at_ms: u64,
    /// What is said of it.
    pub delivery: Delivery,
    /// How often it was tried since the service started.
    pub tries: u32,
    /// The message, as it is sent each time; of the first entry alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<RawValue>>,
}

/// A cause as the ledger remembers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// The cause.
    pub cause: Cause,
    /// When it was seen, milliseconds since 1970.
    pub at_ms: u64,
    /// What became of it.
    pub delivery: Delivery,
    /// When that was known, milliseconds since 1970.
    pub delivery_ms: u64,
    /// The message.
    pub message: Arc<str>,
}

impl super::Ledger {
    /// The causes on record, the oldest first, `count` of the last ones at most.
    ///
    /// Errors: the ledger cannot be read.
    pub fn asked(&self, count: usize) -> Result<Vec<Remembered>, Error> {
        let rows: Vec<String> = self.readers.with(|database| {
            let mut statement = database.prepare_cached(
                "SELECT body FROM entry WHERE kind = 'action' AND json_extract(body, '$.what') = 'retraining'
                 ORDER BY seq DESC LIMIT ?1",
            )?;
            let rows = statement.query_map([(count * ENTRIES_OF_ONE) as i64], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let mut found: Vec<Remembered> = Vec::new();
        for body in rows.into_iter().rev() {
            let Asked { cause, at_ms, delivery, message, .. } = serde_json::from_str(&body)
                .map_err(|error| Error::Broken(format!("an entry about retraining cannot be read: {error}")))?;
            match (found.iter_mut().find(|known| known.cause == cause), message) {
                (Some(known), _) => (known.delivery, known.delivery_ms) = (delivery, at_ms),
                (None, Some(message)) => {
                    found.push(Remembered {
                        cause,
                        at_ms,
                        delivery,
                        delivery_ms: at_ms,
                        message: message.get().into(),
                    });
                }
                // Retention has taken its beginning.
                (None, None) => {}
            }
        }
        found.drain(..found.len().saturating_sub(count));
        Ok(found)
    }
}
