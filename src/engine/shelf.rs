//! The shelf: where bundles and policies are taken from, and how. Everything here reads a disk and takes its time: none of it is for
//! a thread that answers customers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sha2::{Digest, Sha256};

use super::monitor::Monitor;
use crate::domain::bundle::bins::Bins;
use crate::domain::bundle::card::Card;
use crate::domain::policy::Policy;
use crate::domain::policy::document;
use crate::domain::rollout::slots::{Placed, PolicyRef};
use crate::model::{self, LoadOptions, Model, Runtime};

/// Where models come from.
#[derive(Debug)]
pub struct Shelf {
    /// ONNX Runtime.
    pub runtime: &'static Runtime,
    /// Bundles stand in `<dir>/<name>/<version>`.
    pub dir: PathBuf,
    /// How they are loaded.
    pub options: LoadOptions,
    /// Whether what comes in is counted, for drift.
    pub counts: bool,
}

/// A model that was loaded and probed.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    /// The model.
    pub(super) model: Arc<Model>,
    /// About what it takes, in bytes: by how much resident memory grew while it was loaded, and what its evaluator takes at least.
    pub(super) memory_bytes: u64,
    /// Decisions that it made.
    pub(super) requests: Arc<AtomicU64>,
    /// What came in for it.
    pub(super) monitor: Arc<Monitor>,
}

/// A policy document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("cannot read the policy {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It breaks its laws.
    #[error("the policy {path} is wrong:{list}", list = problems.iter().map(|problem| format!("\n  - {problem}")).collect::<String>())]
    Wrong {
        /// The file.
        path: String,
        /// Every problem.
        problems: Vec<String>,
    },
}

impl Loaded {
    /// Whether the model can be served under `policy`.
    ///
    /// Errors: what does not fit.
    pub(super) fn fits(&self, policy: &Policy) -> Result<(), Vec<String>> {
        let id = self.model.id();
        let told = |problem: String| format!("the policy \"{}\" does not fit {id}: {problem}", policy.name());
        let bound = policy.bind_to(self.model.card());
        bound.map(drop).map_err(|problems| problems.into_iter().map(told).collect())
    }
}

impl Shelf {
    /// Loads and probes version `version` of the model `name`, at `now_ms`. Takes some 10 to 500 ms.
    pub(super) fn load(&self, name: &str, version: &str, now_ms: u64) -> Result<Loaded, model::Error> {
        let before = resident_bytes();
        let path = self.dir.join(name).join(version);
        let model = self.model(&path)?;
        let id = model.id();
        if id.name != name || id.version != version {
            let problems = vec![format!("the card says {id}, the directory {name} {version}")];
            return Err(model::Error::Bundle { path, problems });
        }
        // The allocator may have had room for it: then this is at least what evaluates it.
        let memory_bytes = resident_bytes().saturating_sub(before).max(model.evaluator_bytes() as u64);
        let monitor = Arc::new(Monitor::new(Bins::new(model.baseline(), model.schema().names()), now_ms, self.counts));
        Ok(Loaded { model, memory_bytes, requests: Arc::default(), monitor })
    }

    #[cfg(not(test))]
    fn model(&self, path: &Path) -> Result<Arc<Model>, model::Error> {
        Ok(Arc::new(Model::load(self.runtime, path, self.options)?))
    }

    /// The same, once for each bundle: `faults` starts engines by the thousand.
    #[cfg(test)]
    fn model(&self, path: &Path) -> Result<Arc<Model>, model::Error> {
        use std::collections::HashMap;
        use std::sync::{Mutex, PoisonError};
        static KNOWN: Mutex<Option<HashMap<PathBuf, Arc<Model>>>> = Mutex::new(None);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if !known.contains_key(path) {
            known.insert(path.to_owned(), Arc::new(Model::load(self.runtime, path, self.options)?));
        }
        Ok(known[path].clone())
    }

    /// Loads a model again that was in a slot before.
    pub(super) fn load_as(&self, name: &str, placed: &Placed, now_ms: u64) -> Result<Loaded, model::Error> {
        let loaded = self.load(name, &placed.version, now_ms)?;
        if loaded.model.digest() == placed.digest {
            return Ok(loaded);
        }
        let path = self.dir.join(name).join(&placed.version);
        let problem = "it is not the bundle that went into service: bring that one back, or begin anew with models.resume = false";
        Err(model::Error::Bundle { path, problems: vec![problem.to_owned()] })
    }
}

/// Reads and checks the policy document at `path`.
pub fn read_policy(path: &Path) -> Result<Policy, PolicyError> {
    let file = |source| PolicyError::File { path: path.to_owned(), source };
    // One byte more than is allowed is enough to see that it is too much.
    let text = std::fs::File::open(path).and_then(|file| {
        use std::io::Read;
        let mut text = String::new();
        file.take(document::BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
        Ok(text)
    });
    parse_policy(&text.map_err(file)?)
        .map_err(|problems| PolicyError::Wrong { path: path.display().to_string(), problems })
}

/// Checks a policy document. Its version is the beginning of its sha256.
///
/// Errors: every problem.
pub fn parse_policy(document: &str) -> Result<Policy, Vec<String>> {
    document::parse(document, &policy_digest(document)[..16])
}

pub(super) fn policy_ref(policy: &Policy) -> PolicyRef {
    PolicyRef { name: policy.name().to_owned(), digest: policy_digest(policy.document()) }
}

fn policy_digest(document: &str) -> String {
    Sha256::digest(document.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How the dictionary of `next` differs from that of `live`, as sentences; those that would have requests refused which are legal
/// now come as the second list.
pub(super) fn differences(live: &Card, next: &Card) -> (Vec<String>, Vec<String>) {
    use crate::domain::bundle::feature::Missing;
    let (mut harmless, mut breaking) = (Vec::new(), Vec::new());
    for feature in &next.features {
        match live.features.iter().find(|known| known.name == feature.name) {
            None if feature.missing == Missing::Refuse => {
                breaking.push(format!("added: \"{}\", which nobody sends yet", feature.name));
            }
            None => harmless.push(format!("added: \"{}\", which may be missing", feature.name)),
            Some(known) => {
                let same_values = known.kind == feature.kind
                    && known.range == feature.range
                    && known.unknown == feature.unknown
                    && known.categories.as_ref().map(|values| values.keys().collect::<Vec<_>>())
                        == feature.categories.as_ref().map(|values| values.keys().collect::<Vec<_>>());
                let stricter = known.missing != Missing::Refuse && feature.missing == Missing::Refuse;
                if !same_values || stricter {
                    breaking.push(format!("changed: the values of \"{}\" that are legal", feature.name));
                } else if known.missing != feature.missing || known.categories != feature.categories {
                    harmless.push(format!("changed: how \"{}\" is encoded", feature.name));
                }
            }
        }
    }
    for feature in live.features.iter().filter(|known| !next.features.iter().any(|other| other.name == known.name)) {
        breaking.push(format!("removed: \"{}\", which is sent now", feature.name));
    }
    (harmless, breaking)
}

/// Resident memory of the process; 0 where it cannot be told.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Why a bundle cannot be used: each problem by itself, or the failure with its cause.
pub(super) fn reasons_of(error: &model::Error) -> Vec<String> {
    use std::error::Error as _;
    match error {
        model::Error::Bundle { problems, .. } | model::Error::Probe { problems, .. } => problems.clone(),
        error => vec![match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }],
    }
}
