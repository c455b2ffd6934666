//! What can go wrong with the ledger.

use std::path::PathBuf;

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed: its disk is full, gone or broken.
    #[error("the ledger's database failed")]
    Database(#[from] rusqlite::Error),
    /// A file beside the database failed.
    #[error("{path} failed", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process writes this ledger.
    #[error("the ledger in {path} is in use by another process: one ledger has one writer", path = path.display())]
    InUse {
        /// Its directory.
        path: PathBuf,
    },
    /// The key file cannot be used.
    #[error("the key file {path} {problem}", path = path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A newer version of this program wrote the ledger.
    #[error("the ledger {path} has schema {found}, this program knows {known}: run the newer program that wrote it", path = path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that is known here.
        known: i64,
    },
    /// The ledger is not what was written.
    #[error("the ledger is not what was written: {0}")]
    Broken(String),
    /// Something sealed does not open: its key is gone or another one.
    #[error("what was sealed does not open: the key is gone or another one")]
    Sealed,
    /// Too much waits to be written.
    #[error("too many records wait to be written")]
    Busy,
    /// The record did not come about in time.
    #[error("the record did not come about in time")]
    Late,
    /// The group that the record was in could not be written.
    #[error("the record could not be written: {0}")]
    Refused(String),
    /// The ledger is closed.
    #[error("the ledger is closed")]
    Closed,
}

impl Error {
    /// Whether what is on the disk is damaged, so that neither waiting nor room would help.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Error::Broken(_) => true,
            Error::Database(cause) => matches!(cause.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
            _ => false,
        }
    }
}
