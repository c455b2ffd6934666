//! The file of API keys: reading it into what a request is checked against, and editing it for the command line. Only hashes stand
//! there; the key itself is shown once, to whoever makes it.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::meter::{Meter, Time};
use super::{Error, Rate};
use crate::domain::access::{Caller, Hash, ID_CHARS, Id, SECRET_CHARS, Scope, hash, id_of, is_name, is_right, new_key};

/// The most keys of a file.
const KEYS_MAX: usize = 100_000;
/// The largest file, in bytes.
const BYTES_MAX: u64 = 64 << 20;
/// The most roles of a key.
const ROLES_MAX: usize = 16;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: Vec<Key>,
}

/// A key as its line in the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What finds it; no secret.
    pub id: String,
    /// The SHA-256 of the whole key, 64 hexadecimal digits.
    sha256: String,
    /// Who holds it: goes on record with what is done by it.
    pub actor: String,
    /// What it opens.
    pub scopes: Vec<Scope>,
    /// The roles of its holder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it opens nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Since when it opens nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// How often it may be used, if not as often as the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

impl Key {
    /// What is wrong with it, if anything.
    fn problem(&self) -> Option<String> {
        let form = format!("msk_{}_{}", self.id, "a".repeat(SECRET_CHARS));
        if id_of(form.as_bytes()).is_none() {
            return Some("its id is none".to_owned());
        }
        if self.hash().is_none() {
            return Some("its sha256 is not 64 hexadecimal digits".to_owned());
        }
        if !is_name(&self.actor) || self.roles.len() > ROLES_MAX || !self.roles.iter().all(|role| is_name(role)) {
            return Some(format!(
                "actor and at most {ROLES_MAX} roles are 1 to 128 printable characters each, and none is \"mainstay\""
            ));
        }
        if self.rate.is_some_and(|rate| !rate.is_legal()) {
            return Some("its rate is not 1 to 1000000 a second with a burst of at most that".to_owned());
        }
        None
    }

    fn hash(&self) -> Option<Hash> {
        if self.sha256.len() != 64 || !self.sha256.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(self.sha256.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(bytes)
    }
}

/// What a key opens, ready for requests.
pub(super) struct Entry {
    hash: Hash,
    pub(super) caller: Arc<Caller>,
    pub(super) expires_ms: u64,
    pub(super) revoked: bool,
    pub(super) meter: Option<Arc<Meter>>,
}

/// All keys of a file, as of one moment.
pub(super) struct Ring {
    entries: HashMap<Id, Entry>,
    /// What a key that is not there is checked against, so that it takes as long as one that is.
    nobody: Hash,
}

impl Ring {
    /// No key at all.
    pub(super) fn empty() -> Self {
        Self { entries: HashMap::new(), nobody: [0; 32] }
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry of the key `text` that has the id `id`, if it is right: whether the id or the secret is wrong cannot be told from
    /// the answer nor from its time.
    pub(super) fn find(&self, id: &Id, text: &[u8]) -> Option<&Entry> {
        let entry = self.entries.get(id);
        let right = is_right(text, entry.map_or(&self.nobody, |entry| &entry.hash));
        entry.filter(|_| right)
    }

    /// The keys in the text of a file. Buckets of `before` go on as they are where the rate of a key is the same, so that reading a
    /// file again gives nobody a full one.
    ///
    /// Errors: what is wrong, without a piece of a hash.
    fn parse(text: &[u8], usual: Option<Rate>, before: &Self, time: Time) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text)
            .map_err(|error| format!("is no file of keys, at line {} column {}", error.line(), error.column()))?;
        if file.keys.len() > KEYS_MAX {
            return Err(format!("has more than {KEYS_MAX} keys"));
        }
        let mut entries = HashMap::with_capacity(file.keys.len());
        for (at, key) in file.keys.into_iter().enumerate() {
            // What stands where its id belongs may be the key itself.
            if let Some(problem) = key.problem() {
                return Err(format!("has a wrong key at /keys/{at}: {problem}"));
            }
            let (Some(hash), Ok(id)) = (key.hash(), Id::try_from(key.id.as_bytes())) else {
                return Err(format!("has a wrong key at /keys/{at}"));
            };
            let meter = key.rate.or(usual).map(|rate| {
                let same = before.entries.get(&id).and_then(|entry| entry.meter.clone());
                same.filter(|meter| meter.rate() == rate).unwrap_or_else(|| Arc::new(Meter::new(rate, time)))
            });
            let entry = Entry {
                hash,
                caller: Arc::new(Caller {
                    actor: key.actor,
                    scopes: key.scopes.into_iter().collect(),
                    roles: key.roles,
                }),
                expires_ms: key.expires.map_or(u64::MAX, |at| at.as_millisecond().max(0) as u64),
                revoked: key.revoked.is_some(),
                meter,
            };
            if entries.insert(id, entry).is_some() {
                return Err(format!("has the key {:?} more than once", key.id));
            }
        }
        Ok(Self { entries, nobody: [0; 32] })
    }

    /// The keys of the file at `path`.
    ///
    /// Errors: [`Error::Keys`] when it is missing, others can read or change it, or it is none.
    pub(super) fn read(path: &Path, usual: Option<Rate>, before: &Self, time: Time) -> Result<Self, Error> {
        let refused = |problem: String| Error::Keys { path: path.to_owned(), problem };
        let found = fs::metadata(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let mode = found.permissions().mode() & 0o777;
        // A group may read: orchestrators mount secrets that way.
        if mode & 0o027 != 0 {
            return Err(refused(format!("is open to others (mode {mode:o}): chmod 600 it")));
        }
        if found.len() > BYTES_MAX {
            return Err(refused(format!("is larger than {BYTES_MAX} bytes")));
        }
        let text = fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Self::parse(&text, usual, before, time).map_err(refused)
    }
}

/// The file of keys as the command line edits it: one editor at a time, and the file is replaced as a whole or not at all.
pub struct Editor {
    path: PathBuf,
    file: File,
    _lock: fs::File,
}

impl std::fmt::Debug for Editor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Editor").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Editor {
    /// Opens the file at `path`, or where a link there leads to; there need not be one yet.
    ///
    /// Errors: it cannot be read or locked, is no file of keys, or is a link that leads to nothing.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        // A link is followed once, here: else it would be replaced, and what it leads to stay as it is.
        let path = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                path.to_owned()
            }
            Err(source) => return Err(failed(source)),
        };
        let path = path.as_path();
        let beside = path.with_extension("lock");
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&beside);
        let lock = lock.map_err(|source| Error::File { path: beside, source })?;
        lock.lock().map_err(failed)?;
        let file = match fs::read(path) {
            Ok(text) => {
                Ring::read(path, None, &Ring::empty(), Time::OF_PROCESS)?;
                let refused = |_| Error::Keys { path: path.to_owned(), problem: "is no file of keys".to_owned() };
                serde_json::from_slice(&text).map_err(refused)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
            Err(source) => return Err(failed(source)),
        };
        Ok(Self { path: path.to_owned(), file, _lock: lock })
    }

    /// The keys, the oldest first.
    pub fn keys(&self) -> &[Key] {
        &self.file.keys
    }

    /// Adds a key: its id, and the key itself, which stands nowhere afterwards.
    ///
    /// Errors: an illegal actor, role or rate, too many keys, or a file that cannot be written.
    pub fn add(
        &mut self,
        caller: (String, Vec<Scope>, Vec<String>),
        expires: Option<Timestamp>,
        rate: Option<Rate>,
    ) -> Result<(String, String), Error> {
        let refused = |problem: String| Error::Keys { path: self.path.clone(), problem };
        let mut random = [0; ID_CHARS + SECRET_CHARS];
        getrandom::fill(&mut random).map_err(|error| refused(format!("gets no key: {error}")))?;
        let (id, text) = new_key(random);
        let (actor, scopes, roles) = caller;
        let sha256 = hash(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let created = Timestamp::now();
        let key = Key { id: id.clone(), sha256, actor, scopes, roles, created, expires, revoked: None, rate };
        if let Some(problem) = key.problem() {
            return Err(refused(format!("does not take this key: {problem}")));
        }
        if self.file.keys.len() >= KEYS_MAX {
            return Err(refused(format!("has {KEYS_MAX} keys: take out those that are over")));
        }
        self.file.keys.push(key);
        self.write()?;
        Ok((id, text))
    }

    /// Lets the key `id` open nothing from now on. Its line stays, so that who held it can still be found. Whether it had been open.
    ///
    /// Errors: there is no such key, or the file cannot be written.
    pub fn revoke(&mut self, id: &str) -> Result<bool, Error> {
        let Some(key) = self.file.keys.iter_mut().find(|key| key.id == id) else {
            let problem = format!("has no key {id:?}: `mainstay key list` shows the ids");
            return Err(Error::Keys { path: self.path.clone(), problem });
        };
        if key.revoked.is_some() {
            return Ok(false);
        }
        key.revoked = Some(Timestamp::now());
        self.write()?;
        Ok(true)
    }

    fn write(&self) -> Result<(), Error> {
        let beside = self.path.with_extension("new");
        self.replace(&beside).map_err(|source| {
            let _ = fs::remove_file(&beside);
            Error::File { path: self.path.clone(), source }
        })
    }

    /// Puts the keys into the file `beside`, and that in the place of the one before. It belongs to whom that belonged, and opens to whom
    /// that did: else the service could not read it any more, and would go on with a key that was revoked.
    fn replace(&self, beside: &Path) -> std::io::Result<()> {
        let before = match fs::metadata(&self.path) {
            Ok(before) => Some(before),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let _ = fs::remove_file(beside);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
        if let Some(before) = before {
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (before.uid(), before.gid()) {
                fchown(&file, Some(before.uid()), Some(before.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o777))?;
        }
        file.write_all(&serde_json::to_vec_pretty(&self.file)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(beside, &self.path)?;
        let directory = self.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(text: &str, before: &Ring) -> Result<Ring, String> {
        Ring::parse(text.as_bytes(), Rate::new(5, 0), before, Time::OF_PROCESS)
    }

    fn made(directory: &Path, expires: Option<Timestamp>) -> (Editor, String, String) {
        let mut editor = Editor::open(&directory.join("keys.json")).expect("an editor");
        let caller = ("ann".to_owned(), vec![Scope::Score], vec!["deployer".to_owned()]);
        let (id, text) = editor.add(caller, expires, None).expect("a key");
        (editor, id, text)
    }

    #[test]
    fn a_key_is_found_once_made_and_its_secret_stands_nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let (editor, id, text) = made(directory.path(), None);
        let file = fs::read_to_string(&editor.path).expect("a file");
        assert!(file.contains(&id) && !file.contains(&text[15..]));
        assert_eq!(fs::metadata(&editor.path).expect("a file").permissions().mode() & 0o777, 0o600);
        let ring = ring(&file, &Ring::empty()).expect("a ring");
        let id: Id = id_of(text.as_bytes()).expect("an id");
        assert_eq!(ring.find(&id, text.as_bytes()).expect("found").caller.actor, "ann");
        let wrong = format!("{}a", &text[..46]);
        assert!(wrong == text || ring.find(&id, wrong.as_bytes()).is_none());
        assert!(ring.find(b"aaaaaaaaaa", text.as_bytes()).is_none());
    }

    #[test]
    fn a_revoked_key_keeps_its_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut editor, id, _) = made(directory.path(), None);
        assert!(editor.revoke(&id).expect("revoked"));
        assert!(!editor.revoke(&id).expect("revoked before"));
        assert!(editor.revoke("nobody").is_err());
        drop(editor);
        let editor = Editor::open(&directory.path().join("keys.json")).expect("an editor");
        assert!(editor.keys()[0].revoked.is_some());
    }

    #[test]
    fn a_file_that_is_edited_stays_readable_to_whom_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let (editor, id, _) = made(directory.path(), None);
        let (real, link) = (directory.path().join("keys.json"), directory.path().join("link.json"));
        drop(editor);
        std::os::unix::fs::symlink("keys.json", &link).expect("a link");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("a mode");
        // Only root may give a file away.
        let _ = std::os::unix::fs::chown(&real, Some(4_321), Some(4_322));
        let seen =
            |path| fs::metadata(path).map(|found| (found.mode() & 0o777, found.uid(), found.gid())).expect("a file");
        let before = seen(&real);
        assert!(Editor::open(&link).expect("an editor").revoke(&id).expect("revoked"));
        assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
        assert_eq!((seen(&real), before.0), (before, 0o640));
        assert!(Editor::open(&real).expect("an editor").keys()[0].revoked.is_some());
        // Where a link leads to nothing, nothing takes its place.
        fs::remove_file(&real).expect("removed");
        assert!(Editor::open(&link).is_err());
    }

    #[test]
    fn reading_again_fills_no_bucket() {
        let directory = tempfile::tempdir().expect("a directory");
        let (editor, _, text) = made(directory.path(), None);
        let id: Id = id_of(text.as_bytes()).expect("an id");
        let file = fs::read_to_string(&editor.path).expect("a file");
        let first = ring(&file, &Ring::empty()).expect("a ring");
        let again = ring(&file, &first).expect("a ring");
        let meter = |ring: &Ring| ring.entries[&id].meter.clone().expect("a meter");
        assert!(Arc::ptr_eq(&meter(&first), &meter(&again)));
        let other = file.replace("\"created\"", "\"rate\": {\"per_sec\": 9}, \"created\"");
        assert_eq!(meter(&ring(&other, &first).expect("a ring")).rate(), Rate { per_sec: 9, burst: 0 });
    }

    #[test]
    fn a_wrong_file_is_refused_as_a_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let (editor, id, text) = made(directory.path(), None);
        let file = fs::read_to_string(&editor.path).expect("a file");
        let twice = file.replace("\"keys\": [", &format!("\"keys\": [{},", serde_json::json!(editor.keys()[0])));
        for (wrong, told) in [
            ("{", "line 1"),
            (&file.replace("score", "everything"), "is no file of keys"),
            (&file.replace(&id, "x"), "its id"),
            (&file.replace("\"ann\"", "\"mainstay\""), "actor"),
            (&file.replace("\"sha256\": \"", "\"sha256\": \"zz"), "its sha256"),
            (&file.replace("\"created\"", "\"rate\": {\"per_sec\": 0}, \"created\""), "its rate"),
            (&twice, "more than once"),
        ] {
            let problem = ring(wrong, &Ring::empty()).err().unwrap_or_default();
            assert!(problem.contains(told), "{told}: {problem}");
        }
        // Whoever put the whole key where its id belongs does not want to read it in a log.
        let problem = ring(&file.replace(&id, &text), &Ring::empty()).err().expect("refused");
        assert!(problem.contains("/keys/0") && !problem.contains(&text[15..]), "{problem}");
        fs::set_permissions(&editor.path, fs::Permissions::from_mode(0o644)).expect("a mode");
        let refused = Ring::read(&editor.path, None, &Ring::empty(), Time::OF_PROCESS).err().expect("refused");
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
    }
}
