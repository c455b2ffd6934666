//! The one place for staging of each deck: so that a model is loaded once at a time, and a request that is sent again finds itself. What is
//! staged, and how, is in `moves`.

use std::sync::{Mutex, PoisonError};

use super::slots::Deck;

impl Deck {
    /// Takes the one place for staging, for the request with `key`.
    ///
    /// Errors: whether it is the very same request that has it.
    pub(super) fn staging(&self, key: Option<&str>) -> Result<Staging<'_>, bool> {
        let mut place = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        match &*place {
            Some(Asked(other)) => Err(key.is_some() && other.as_deref() == key),
            None => {
                *place = Some(Asked(key.map(str::to_owned)));
                Ok(Staging(&self.staging))
            }
        }
    }

    pub(super) fn is_staging(&self) -> bool {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// The key of a request, if it has one.
#[derive(Debug)]
pub(super) struct Asked(Option<String>);

/// The one place for staging, given back when it is dropped.
pub(super) struct Staging<'d>(&'d Mutex<Option<Asked>>);

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
