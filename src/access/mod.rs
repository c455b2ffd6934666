//! Floor 1, access: which keys and tokens open what. A request is checked against one snapshot, without a lock; files and issuers are
//! read again beside the requests. What scopes and roles mean is the law's (`domain/access`), and how an issuer is reached is not known here.

mod keys;
mod meter;
mod signature;
mod token;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

pub use keys::{Editor, Key};
pub use meter::{Left, Rate};
pub use signature::Algorithm;
pub use token::{Fetch, Options as TokenOptions};

use crate::domain::access::{Caller, Needs, Scope, id_of, is_name};
use keys::Ring;
use meter::{Meter, RATE_MAX, Time};
use token::Tokens;

/// Who may call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Whether credentials are asked for.
    pub required: bool,
    /// The file of API keys.
    pub keys_file: PathBuf,
    /// Requests a second of each caller for whom nothing else is said; 0 is no bound.
    pub rate_per_sec: u32,
    /// Requests at once after a pause; 0 is as many as in a second.
    pub burst: u32,
    /// Whether metrics, figures of the business among them, can be had without credentials.
    pub open_metrics: bool,
    /// Whether the contract and its page can be had without credentials.
    pub open_contract: bool,
    /// The roles that put something into service.
    pub deployers: Vec<String>,
    /// The issuer whose tokens are taken.
    pub jwt: TokenOptions,
}

impl Options {
    /// Every value that is wrong, as (key, sentence), but for `jwt.jwks_url` and `jwt.jwks_ca`: that needs to know how one calls.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (key, value) in [("rate_per_sec", self.rate_per_sec), ("burst", self.burst)] {
            if value > RATE_MAX {
                problems.push((key, format!("expected at most {RATE_MAX}")));
            }
        }
        if !self.deployers.iter().all(|role| is_name(role)) {
            problems.push(("deployers", "expected roles of 1 to 128 printable characters".to_owned()));
        }
        problems.extend(self.jwt.problems());
        problems
    }

    /// What a caller's rate is where nothing else is said.
    fn rate(&self) -> Option<Rate> {
        Rate::new(self.rate_per_sec, self.burst)
    }
}

/// Why access cannot be had, or not be had anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of keys cannot be used.
    #[error("the file of API keys {path} {problem}", path = path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The issuer's keys are none.
    #[error("the issuer's keys of {place}: the document {problem}")]
    Jwks {
        /// Where they came from.
        place: String,
        /// Why not.
        problem: String,
    },
    /// The issuer does not answer.
    #[error("the issuer's keys: {url}: {cause}")]
    Issuer {
        /// Its address.
        url: String,
        /// Why not.
        cause: String,
    },
}

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has no credentials.
    Missing,
    /// Its credentials are not one line `authorization: Bearer ...`.
    Malformed,
    /// No key and no token is like this: what of it is wrong is not told.
    Unknown,
    /// The credentials were right, and are over.
    Expired,
    /// The key was right, and was taken back.
    Revoked,
    /// The token is of the issuer's kind and cannot be taken.
    Token(&'static str),
    /// The caller lacks this scope.
    Scope(Scope),
    /// The caller has called too often.
    Rate {
        /// The rate.
        rate: Rate,
        /// When to come again.
        wait: Duration,
    },
}

impl Refused {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refused::Missing => "missing",
            Refused::Malformed => "malformed",
            Refused::Unknown => "unknown",
            Refused::Expired => "expired",
            Refused::Revoked => "revoked",
            Refused::Token(_) => "token",
            Refused::Scope(_) => "scope",
            Refused::Rate { .. } => "rate",
        }
    }
}

/// Who was admitted.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Who calls.
    pub caller: Arc<Caller>,
    /// What is left of that one's rate, if there is one.
    pub left: Option<Left>,
}

/// The keys and tokens that open this service, as of now.
pub struct Access {
    options: Options,
    ring: ArcSwap<Ring>,
    /// What the file of keys was when it was read: changed, length, number.
    seen: Mutex<Option<(SystemTime, u64, u64)>>,
    tokens: Option<Tokens>,
    /// What is wrong at the moment, so that it is told once.
    told: Mutex<[Option<String>; 2]>,
    clock: fn() -> SystemTime,
    time: Time,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("keys", &self.ring.load().len()).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the keys and, where there is an issuer, its keys: `fetch` gets them from an address. An issuer that does not answer is asked
    /// again later.
    ///
    /// Errors: a file that cannot be used. Without an issuer there has to be a file of API keys.
    pub fn open(options: Options, clock: fn() -> SystemTime, fetch: Fetch) -> Result<Self, Error> {
        let time = Time::OF_PROCESS;
        let tokens = options.jwt.is_on().then(|| Tokens::new(options.jwt.clone(), options.rate(), time, clock, fetch));
        let (ring, seen, told) = (ArcSwap::from_pointee(Ring::empty()), Mutex::default(), Mutex::default());
        let access = Self { options, ring, seen, tokens, told, clock, time };
        if access.tokens.is_none() || access.options.keys_file.exists() {
            access.read_keys()?;
        }
        if let Some(tokens) = &access.tokens {
            match tokens.refresh(true) {
                Ok(_) => tokens.without_keys().map_or(Ok(()), Err)?,
                Err(error @ Error::Issuer { .. }) => access.tell(1, Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(access)
    }

    /// Who may call, as the configuration says.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How many API keys there are, those that are over among them.
    pub fn keys(&self) -> usize {
        self.ring.load().len()
    }

    /// Reads again what has changed: the file of keys, and the issuer's keys, those with `now` wherever they come from. What cannot be
    /// read is told once, and what was there before goes on.
    pub fn refresh(&self, now: bool) {
        match self.read_keys() {
            Ok(false) => {}
            Ok(true) => {
                self.tell(0, None);
                tracing::info!(keys = self.keys(), "API keys read again");
            }
            // Where there is an issuer, there need not be keys.
            Err(Error::File { source, .. })
                if self.tokens.is_some() && self.keys() == 0 && source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => self.tell(0, Some(error)),
        }
        if let Some(tokens) = &self.tokens {
            match tokens.refresh(now) {
                Ok(false) => {}
                Ok(true) => {
                    self.tell(1, None);
                    match tokens.without_keys() {
                        None => tracing::info!("the issuer's keys read again"),
                        Some(error) => {
                            tracing::error!(cause = %error, "the issuer has taken its keys back: no token opens anything")
                        }
                    }
                }
                Err(error) => self.tell(1, Some(error)),
            }
        }
    }

    fn read_keys(&self) -> Result<bool, Error> {
        let path = &self.options.keys_file;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = std::fs::metadata(path).map_err(|source| Error::File { path: path.clone(), source })?;
        let found = (found.modified().unwrap_or(SystemTime::UNIX_EPOCH), found.len(), found.ino());
        if *seen == Some(found) {
            return Ok(false);
        }
        let ring = Ring::read(path, self.options.rate(), &self.ring.load(), self.time)?;
        self.ring.store(Arc::new(ring));
        *seen = Some(found);
        Ok(true)
    }

    fn tell(&self, what: usize, error: Option<Error>) {
        let error = error.map(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        });
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &error
            && told[what] != error
        {
            tracing::error!(cause, "who may call could not be read again, and stays as it is");
        }
        told[what] = error;
    }

    /// What `needs` asks for once the configuration has said what is open.
    pub fn asked(&self, needs: Needs) -> Needs {
        match needs {
            Needs::Metrics if self.options.open_metrics => Needs::Nothing,
            Needs::Contract if self.options.open_contract => Needs::Nothing,
            Needs::Metrics | Needs::Contract => Needs::Scope(Scope::Read),
            other => other,
        }
    }

    /// Whether a request with the header `authorization` may do what `needs` asks for, and whose it is; nobody's where nothing is
    /// asked for. Takes it from the caller's rate.
    ///
    /// Errors: why not.
    pub fn admit(&self, authorization: Option<&[u8]>, needs: Needs) -> Result<Option<Admitted>, Refused> {
        let needs = self.asked(needs);
        if needs == Needs::Nothing {
            return Ok(None);
        }
        let text = bearer(authorization.ok_or(Refused::Missing)?).ok_or(Refused::Malformed)?;
        let (caller, meter) = self.find(text)?;
        // Before the scope: who may not do it has asked all the same.
        let left = match meter {
            Some(meter) => Some(meter.take().map_err(|wait| Refused::Rate { rate: meter.rate(), wait })?),
            None => None,
        };
        caller.may(needs).map_err(Refused::Scope)?;
        Ok(Some(Admitted { caller, left }))
    }

    fn find(&self, text: &[u8]) -> Result<(Arc<Caller>, Option<Arc<Meter>>), Refused> {
        let Some(id) = id_of(text) else {
            return self.tokens.as_ref().ok_or(Refused::Unknown)?.find(text);
        };
        let ring = self.ring.load();
        let entry = ring.find(&id, text).ok_or(Refused::Unknown)?;
        if entry.revoked {
            return Err(Refused::Revoked);
        }
        if entry.expires_ms != u64::MAX {
            let now = (self.clock)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            if now.as_millis() as u64 >= entry.expires_ms {
                return Err(Refused::Expired);
            }
        }
        Ok((entry.caller.clone(), entry.meter.clone()))
    }
}

/// What follows `Bearer `, in any case (RFC 6750, section 2.1; RFC 9110, section 11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, text) = header.split_at_checked(7)?;
    let text = text.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !text.is_empty()).then_some(text)
}
