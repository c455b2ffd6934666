//! Bearer tokens of an OIDC issuer (JWT): the issuer's keys, the check of a token, and the tokens that were checked already, so that
//! a signature is verified once and not with every request.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::meter::{Meter, Time};
use super::signature::{self, Algorithm};
use super::{Error, Rate, Refused};
use crate::domain::access::{Caller, Hash, Scopes, hash, is_name};

/// Checked tokens that are remembered; each has one place, by its hash, and is checked again once another one took it.
const TOKENS_MAX: usize = 8_192;
/// Subjects whose rates are remembered.
const SUBJECTS_MAX: usize = 65_536;
/// The longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 8_192;
/// The most keys of an issuer, and the largest document with them, in bytes.
const KEYS_MAX: usize = 256;
pub(super) const JWKS_BYTES_MAX: u64 = 1 << 20;
/// The most roles that are taken from a token.
const ROLES_MAX: usize = 64;
/// The least time between two fetches that unknown keys ask for.
const FETCH_AGAIN: Duration = Duration::from_secs(30);

/// What gets the document at an address: that address, the file with the certificates that vouch for it (empty for public authorities), and
/// how many bytes it may have.
///
/// Errors: why it cannot be had, as a phrase for a log.
pub type Fetch = fn(url: &str, ca: &Path, bytes_max: u64) -> Result<Vec<u8>, String>;

/// Whose tokens are taken, and how they are read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The claim `iss`; empty, and no token is taken.
    pub issuer: String,
    /// What the claim `aud` has to have.
    pub audience: String,
    /// The file with the issuer's keys.
    pub jwks_file: PathBuf,
    /// The address of the issuer's keys.
    pub jwks_url: String,
    /// The file with the certificates that vouch for that address; empty for public authorities.
    pub jwks_ca: PathBuf,
    /// How often the address is asked, in seconds.
    pub jwks_refresh_secs: u64,
    /// The algorithms that are allowed.
    pub algorithms: Vec<Algorithm>,
    /// How far clocks may differ, in seconds.
    pub leeway_secs: u64,
    /// The claim that goes on record.
    pub actor_claim: String,
    /// The claim with the scopes.
    pub scope_claim: String,
    /// The claim with the roles.
    pub roles_claim: String,
}

impl Options {
    /// Whether tokens are taken at all.
    pub fn is_on(&self) -> bool {
        !self.issuer.is_empty()
    }

    /// Every value that is wrong, as (key, sentence), but for what only the room knows that calls the address.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut wrong = |is_wrong: bool, key, text: &str| {
            if is_wrong {
                problems.push((key, text.to_owned()));
            }
        };
        wrong(!(10..=86_400).contains(&self.jwks_refresh_secs), "jwt.jwks_refresh_secs", "expected 10 to 86400");
        wrong(self.leeway_secs > 300, "jwt.leeway_secs", "expected at most 300");
        if self.is_on() {
            wrong(self.audience.is_empty(), "jwt.audience", "expected the audience of this service");
            wrong(self.algorithms.is_empty(), "jwt.algorithms", "expected at least one");
            let (file, url) = (!self.jwks_file.as_os_str().is_empty(), !self.jwks_url.is_empty());
            wrong(file == url, "jwt.jwks_file", "expected either a file or jwt.jwks_url");
        }
        problems
    }
}

/// The document of an issuer.
#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// One key of the issuer, and the one algorithm that it is used with.
struct Known {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// A token that was checked.
struct Checked {
    hash: Hash,
    /// Of which keys: tokens of keys that are gone are checked again.
    keys: u64,
    expires_ms: u64,
    caller: Arc<Caller>,
    meter: Option<Arc<Meter>>,
}

/// Who a token is for, and how often that one may call.
pub(super) type Subject = (Arc<Caller>, Option<Arc<Meter>>);

/// The tokens of one issuer.
pub(super) struct Tokens {
    options: Options,
    rate: Option<Rate>,
    time: Time,
    clock: fn() -> SystemTime,
    fetch: Fetch,
    known: ArcSwap<Vec<Known>>,
    /// Counts the documents that `known` came from.
    keys: AtomicU64,
    /// The text that `known` is of.
    text: Mutex<Vec<u8>>,
    checked: Box<[ArcSwapOption<Checked>]>,
    meters: Mutex<HashMap<String, Arc<Meter>>>,
    /// Somebody came with a key that is not known: it may be a new one.
    wanted: AtomicBool,
    fetched: Mutex<Option<Duration>>,
}

impl Tokens {
    /// With no keys yet: `fetch` gets them, where they are at an address.
    pub(super) fn new(
        options: Options,
        rate: Option<Rate>,
        time: Time,
        clock: fn() -> SystemTime,
        fetch: Fetch,
    ) -> Self {
        signature::install();
        Self {
            options,
            rate,
            time,
            clock,
            fetch,
            known: ArcSwap::from_pointee(Vec::new()),
            keys: AtomicU64::new(0),
            text: Mutex::default(),
            checked: (0..TOKENS_MAX).map(|_| ArcSwapOption::empty()).collect(),
            meters: Mutex::default(),
            wanted: AtomicBool::new(false),
            fetched: Mutex::default(),
        }
    }

    /// Reads the issuer's keys again: from the file always, from the address when it is time, or with `now`. Whether they are others.
    ///
    /// Errors: they cannot be had, or are no set of keys; those of before stay. A set without a key that is of use is taken as it is:
    /// what an issuer no longer publishes opens nothing.
    pub(super) fn refresh(&self, now: bool) -> Result<bool, Error> {
        let text = if self.options.jwks_url.is_empty() {
            let path = &self.options.jwks_file;
            std::fs::read(path).map_err(|source| Error::File { path: path.clone(), source })?
        } else {
            let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            let age = fetched.map(|at| (self.time.0)().saturating_sub(at));
            let wanted = self.wanted.load(Ordering::Relaxed) && age.is_some_and(|age| age >= FETCH_AGAIN);
            let due = age.is_none_or(|age| age >= Duration::from_secs(self.options.jwks_refresh_secs));
            if !(now || wanted || due) {
                return Ok(false);
            }
            // Also when it fails: an issuer that is down is not asked every second.
            *fetched = Some((self.time.0)());
            self.wanted.store(false, Ordering::Relaxed);
            (self.fetch)(&self.options.jwks_url, &self.options.jwks_ca, JWKS_BYTES_MAX)
                .map_err(|cause| Error::Issuer { url: self.options.jwks_url.clone(), cause })?
        };
        let mut before = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == text {
            return Ok(false);
        }
        let known = self.read(&text).map_err(|problem| Error::Jwks { place: self.place(), problem })?;
        self.known.store(Arc::new(known));
        self.keys.fetch_add(1, Ordering::Release);
        *before = text;
        Ok(true)
    }

    fn read(&self, text: &[u8]) -> Result<Vec<Known>, String> {
        if text.len() as u64 > JWKS_BYTES_MAX {
            return Err(format!("is larger than {JWKS_BYTES_MAX} bytes"));
        }
        let set: Set = serde_json::from_slice(text).map_err(|_| "is no JSON Web Key Set".to_owned())?;
        if set.keys.len() > KEYS_MAX {
            return Err(format!("has more than {KEYS_MAX} keys"));
        }
        // A key of a kind that is not known is left out, as RFC 7517, section 5 wants it.
        let readable = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Ok(readable.filter_map(|jwk| self.known(&jwk)).collect())
    }

    /// That there is no key at all, as an error, if so. An issuer may take all of its keys back, but nobody begins that way.
    pub(super) fn without_keys(&self) -> Option<Error> {
        let problem = "has no key to check signatures with by any of access.jwt.algorithms".to_owned();
        self.known.load().is_empty().then(|| Error::Jwks { place: self.place(), problem })
    }

    /// Where the keys come from.
    fn place(&self) -> String {
        if self.options.jwks_url.is_empty() {
            self.options.jwks_file.display().to_string()
        } else {
            self.options.jwks_url.clone()
        }
    }

    /// A key that signatures are checked with: by the algorithm that it names, or by the one that is usual for its kind, and by no
    /// other, whatever a token says.
    fn known(&self, jwk: &Jwk) -> Option<Known> {
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
            (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
            (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::PS256)) => Algorithm::PS256,
            (AlgorithmParameters::EllipticCurve(curve), None | Some(KeyAlgorithm::ES256))
                if curve.curve == EllipticCurve::P256 =>
            {
                Algorithm::ES256
            }
            (AlgorithmParameters::OctetKeyPair(pair), None | Some(KeyAlgorithm::EdDSA))
                if pair.curve == EllipticCurve::Ed25519 =>
            {
                Algorithm::EdDSA
            }
            _ => return None,
        };
        if !self.options.algorithms.contains(&algorithm) {
            return None;
        }
        Some(Known { id: jwk.common.key_id.clone(), algorithm, key: DecodingKey::from_jwk(jwk).ok()? })
    }

    /// Whose token `text` is.
    ///
    /// Errors: [`Refused::Token`] with what is wrong with it.
    pub(super) fn find(&self, text: &[u8]) -> Result<Subject, Refused> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refused::Unknown);
        }
        let (hash, keys) = (hash(text), self.keys.load(Ordering::Acquire));
        let now_ms = (self.clock)().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let place = &self.checked[usize::from(u16::from_le_bytes([hash[0], hash[1]])) % TOKENS_MAX];
        if let Some(checked) = &*place.load()
            && (checked.hash, checked.keys) == (hash, keys)
            && now_ms < checked.expires_ms
        {
            return Ok((checked.caller.clone(), checked.meter.clone()));
        }
        let (caller, expires_ms) = self.check(text)?;
        let (caller, meter) = (Arc::new(caller), None);
        let meter = self.rate.map_or(meter, |rate| Some(self.meter(&caller.actor, rate)));
        let checked = Checked { hash, keys, expires_ms, caller: caller.clone(), meter: meter.clone() };
        place.store(Some(Arc::new(checked)));
        Ok((caller, meter))
    }

    /// Verifies a token: who it is for, and until when it can be remembered.
    fn check(&self, text: &[u8]) -> Result<(Caller, u64), Refused> {
        let header = decode_header(text).map_err(|_| Refused::Unknown)?;
        let known = self.known.load();
        let found = match &header.kid {
            Some(id) => known.iter().find(|known| known.id.as_ref() == Some(id)),
            // Without a name it has to be the only one that it can be.
            None => Some(&known[..]).filter(|known| known.len() == 1).map(|known| &known[0]),
        };
        let Some(known) = found else {
            self.wanted.store(true, Ordering::Relaxed);
            return Err(Refused::Token("its key is not one of the issuer's"));
        };
        let mut validation = Validation::new(known.algorithm.named());
        validation.leeway = self.options.leeway_secs;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.options.issuer]);
        validation.set_audience(&[&self.options.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let token =
            decode::<Map<String, Value>>(text, &known.key, &validation).map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => Refused::Expired,
                ErrorKind::ImmatureSignature => Refused::Token("it is not valid yet"),
                ErrorKind::InvalidAudience => Refused::Token("it is for another audience"),
                ErrorKind::InvalidIssuer => Refused::Token("it is of another issuer"),
                ErrorKind::MissingRequiredClaim(_) => Refused::Token("it lacks exp, iss or aud"),
                ErrorKind::InvalidAlgorithm => Refused::Token("its algorithm is not that of its key"),
                _ => Refused::Unknown,
            })?;
        let claims = token.claims;
        let actor = claim(&claims, &self.options.actor_claim).and_then(Value::as_str).filter(|actor| is_name(actor));
        let actor = actor.ok_or(Refused::Token("it names nobody who could go on record"))?;
        let mut roles = words(claim(&claims, &self.options.roles_claim));
        roles.retain(|role| is_name(role));
        roles.truncate(ROLES_MAX);
        let scopes = Scopes::of_words(&words(claim(&claims, &self.options.scope_claim)).join(" "));
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default() + self.options.leeway_secs as f64;
        Ok((Caller { actor: actor.to_owned(), scopes, roles }, (expires * 1_000.0) as u64))
    }

    /// The bucket of a subject: one for all of its tokens.
    fn meter(&self, actor: &str, rate: Rate) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if meters.len() >= SUBJECTS_MAX && !meters.contains_key(actor) {
            // Those that no remembered token holds: they have been away for long.
            meters.retain(|_, meter| Arc::strong_count(meter) > 1);
        }
        meters.entry(actor.to_owned()).or_insert_with(|| Arc::new(Meter::new(rate, self.time))).clone()
    }
}

/// The claim called `name`; where there is none, the name is a path with dots, such as `realm_access.roles`.
fn claim<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        rest.split('.').try_fold(claims.get(first)?, |value, part| value.get(part))
    })
}

/// The words of a claim: a text parted by spaces, or an array of texts.
fn words(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::String(text)) => text.split_ascii_whitespace().map(str::to_owned).collect(),
        Some(Value::Array(list)) => list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn tokens(time: Time, fetch: Fetch) -> Tokens {
        let options = Config::load(&Sources::of_process(None, Vec::new())).expect("a configuration").access.jwt;
        let options = Options { jwks_url: "https://issuer.example/keys".to_owned(), ..options };
        Tokens::new(options, None, time, SystemTime::now, fetch)
    }

    #[test]
    fn an_issuer_is_asked_when_it_is_time_or_for_an_unknown_key_and_not_every_second() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let time = Time(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
        let tokens = tokens(time, |_, _, _| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Err("it is down".to_owned())
        });
        let refresh = |at: u64, now: bool| {
            NOW.store(at, Ordering::Relaxed);
            let before = ASKED.load(Ordering::Relaxed);
            let told = tokens.refresh(now).map_err(|error| error.to_string());
            let is_asked = ASKED.load(Ordering::Relaxed) > before;
            let down = Err("the issuer's keys: https://issuer.example/keys: it is down".to_owned());
            assert_eq!(told, if is_asked { down } else { Ok(false) });
            is_asked
        };
        // The header {"alg":"EdDSA"}, of no key that is known.
        let unknown = || assert!(matches!(tokens.find(b"eyJhbGciOiJFZERTQSJ9.e30.c2ln"), Err(Refused::Token(_))));
        assert!(refresh(0, false), "nothing is known yet");
        assert!(!refresh(1, false) && !refresh(299, false) && refresh(300, false), "every 300 seconds");
        unknown();
        assert!(!refresh(329, false) && refresh(330, false), "a key may be new, but not every second");
        assert!(!refresh(360, false), "once for all who came");
        assert!(refresh(361, true), "by hand at once");
    }

    #[test]
    fn a_document_that_is_too_large_is_told() {
        let tokens = tokens(Time::OF_PROCESS, |_, _, bytes_max| Ok(vec![b' '; bytes_max as usize + 1]));
        let error = tokens.refresh(true).expect_err("too large").to_string();
        assert_eq!(
            error,
            "the issuer's keys of https://issuer.example/keys: the document is larger than 1048576 bytes"
        );
    }
}
