//! The keys of the ledger: a file of master secrets, and what is derived from each. Pseudonyms of customers, the wrapping of
//! customers' own keys, the sealing of inputs under those, and the keyed chain. Nothing is stored here but the file.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, AeadInOut, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::Error;

/// The pseudonym of a customer: HMAC-SHA256 of the id under a secret, cut to 128 bits.
pub(super) type Pseudonym = [u8; 16];
/// The key of one customer.
pub(super) type CustomerKey = [u8; 32];
/// A link of the chain.
pub(super) type Link = [u8; 32];

type HmacSha256 = Hmac<Sha256>;

/// What is wrong with a damaged key file, and the way back.
const NO_KEYS: &str = "is not a key file: put a copy of the one in its place that the ledger was written with";
const NONCE: usize = 12;
const TAG: usize = 16;

/// The file as it is written: the newest master secret last.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: Vec<Stored>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    created: Timestamp,
    /// 32 bytes, hexadecimal.
    secret: String,
}

/// What is derived from one master secret, by HKDF-SHA256 (RFC 5869) with a label for each use.
struct Master {
    version: u32,
    pseudonym: HmacSha256,
    wrap: Aes256Gcm,
    chain: HmacSha256,
    source: HmacSha256,
}

/// All master secrets: the newest writes, all read.
pub(super) struct Keys {
    path: PathBuf,
    stored: Vec<Stored>,
    masters: Vec<Master>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("path", &self.path).field("versions", &self.masters.len()).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the key file at `path`; makes one with a new secret when there is none and `may_create`.
    ///
    /// Errors: [`Error::Keys`] when it is missing, readable for others, or not a key file.
    pub(super) fn open(path: &Path, may_create: bool) -> Result<Self, Error> {
        let refused = |problem: String| Error::Keys { path: path.to_owned(), problem };
        if !path.exists() {
            if !may_create {
                return Err(refused("is missing, but the ledger was written with it: put it back".to_owned()));
            }
            let mut keys = Self { path: path.to_owned(), stored: Vec::new(), masters: Vec::new() };
            keys.rotate()?;
            return Ok(keys);
        }
        let mode = fs::metadata(path).map_err(|error| refused(error.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(refused(format!("may be read by others (mode {:o}): chmod 600 it", mode & 0o777)));
        }
        let text = fs::read(path).map_err(|error| refused(error.to_string()))?;
        // The message of a parser could quote a secret.
        let file: File = serde_json::from_slice(&text).map_err(|_| refused(NO_KEYS.to_owned()))?;
        let masters = file.keys.iter().map(|stored| Master::new(stored).ok_or_else(|| refused(NO_KEYS.to_owned())));
        let masters: Vec<Master> = masters.collect::<Result<_, _>>()?;
        if masters.is_empty() || !masters.is_sorted_by(|one, next| one.version < next.version) {
            return Err(refused(NO_KEYS.to_owned()));
        }
        Ok(Self { path: path.to_owned(), stored: file.keys, masters })
    }

    /// Adds a new master secret, which writes from now on. The file is replaced as a whole or not at all.
    pub(super) fn rotate(&mut self) -> Result<u32, Error> {
        let refused = |path: &Path, problem: String| Error::Keys { path: path.to_owned(), problem };
        let stored = Stored {
            version: self.stored.last().map_or(1, |last| last.version + 1),
            created: Timestamp::now(),
            secret: hex(&random::<32>()),
        };
        let version = stored.version;
        let master = Master::new(&stored).ok_or_else(|| refused(&self.path, "cannot be made".to_owned()))?;
        self.stored.push(stored);
        let written = self.write();
        match written {
            Ok(()) => {
                self.masters.push(master);
                Ok(version)
            }
            Err(error) => {
                self.stored.pop();
                Err(refused(&self.path, error.to_string()))
            }
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let stored = self.stored.iter().map(|key| Stored {
            version: key.version,
            created: key.created,
            secret: key.secret.clone(),
        });
        let text = serde_json::to_vec_pretty(&File { keys: stored.collect() })?;
        let beside = self.path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        // A rename lasts once its directory does.
        self.path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
    }

    fn newest(&self) -> &Master {
        // `open` and `rotate` make sure that there is one.
        &self.masters[self.masters.len() - 1]
    }

    fn of(&self, version: u32) -> Option<&Master> {
        self.masters.iter().find(|master| master.version == version)
    }

    /// The version that writes.
    pub(super) fn version(&self) -> u32 {
        self.newest().version
    }

    /// The pseudonym that `customer_id` is written under.
    pub(super) fn pseudonym(&self, customer_id: &str) -> Pseudonym {
        self.newest().pseudonym(customer_id)
    }

    /// Every pseudonym that `customer_id` may have been written under, the newest first.
    pub(super) fn pseudonyms(&self, customer_id: &str) -> Vec<Pseudonym> {
        self.masters.iter().rev().map(|master| master.pseudonym(customer_id)).collect()
    }

    /// What stands for the id that a caller gave to something of the decision `decision_id`, under every key that may have
    /// written it, the newest first.
    pub(super) fn tokens(&self, decision_id: &str, source_id: &str) -> Vec<[u8; 16]> {
        let token = |master: &Master| {
            // The first one always has 36 characters, so no two pairs are the same text.
            let mac = master.source.clone().chain_update(decision_id.as_bytes()).chain_update(source_id.as_bytes());
            let mut token = [0; 16];
            token.copy_from_slice(&mac.finalize().into_bytes()[..16]);
            token
        };
        self.masters.iter().rev().map(token).collect()
    }

    /// A new key for the customer, and the same wrapped for the database.
    pub(super) fn new_customer_key(&self, customer: &Pseudonym) -> Result<(CustomerKey, Vec<u8>), Error> {
        let key = random::<32>();
        Ok((key, self.wrap(customer, &key)?))
    }

    /// `key` wrapped under the newest master secret, bound to its customer.
    pub(super) fn wrap(&self, customer: &Pseudonym, key: &CustomerKey) -> Result<Vec<u8>, Error> {
        seal(&self.newest().wrap, random(), key, customer)
    }

    /// The key that was wrapped under the master secret `version`.
    pub(super) fn unwrap(&self, version: u32, customer: &Pseudonym, wrapped: &[u8]) -> Result<CustomerKey, Error> {
        let master = self.of(version).ok_or(Error::Sealed)?;
        open(&master.wrap, wrapped, customer)?.try_into().map_err(|_| Error::Sealed)
    }

    /// The start of a link of the chain under the master secret `version`.
    pub(super) fn chain(&self, version: u32) -> Option<HmacSha256> {
        self.of(version).map(|master| master.chain.clone())
    }
}

impl Master {
    fn new(stored: &Stored) -> Option<Self> {
        let secret = unhex(&stored.secret)?;
        let hkdf = Hkdf::<Sha256>::new(None, &secret);
        let derive = |label: &str| {
            let mut key = [0; 32];
            hkdf.expand(label.as_bytes(), &mut key).ok()?;
            Some(key)
        };
        Some(Self {
            version: stored.version,
            pseudonym: HmacSha256::new_from_slice(&derive("mainstay ledger pseudonym")?).ok()?,
            wrap: Aes256Gcm::new_from_slice(&derive("mainstay ledger wrap")?).ok()?,
            chain: HmacSha256::new_from_slice(&derive("mainstay ledger chain")?).ok()?,
            source: HmacSha256::new_from_slice(&derive("mainstay ledger source")?).ok()?,
        })
    }

    fn pseudonym(&self, customer_id: &str) -> Pseudonym {
        let mac = self.pseudonym.clone().chain_update(customer_id.as_bytes()).finalize().into_bytes();
        let mut pseudonym = [0; 16];
        pseudonym.copy_from_slice(&mac[..16]);
        pseudonym
    }
}

/// The inputs of one decision under its customer's key: digest and ciphertext.
pub(super) struct Sealed {
    /// HMAC-SHA256 of the inputs under the customer's key, cut to 128 bits: it proves them equal while the key is there, and
    /// says nothing of them once it is destroyed.
    pub(super) digest: [u8; 16],
    /// Nonce, ciphertext and tag (AES-256-GCM, NIST SP 800-38D).
    pub(super) ciphertext: Option<Vec<u8>>,
}

/// Seals `inputs` under `key`, bound to the decision `id`; with `keep` false only the digest is made.
pub(super) fn seal_inputs(
    key: &CustomerKey,
    nonce: [u8; NONCE],
    id: &[u8; 16],
    inputs: &[u8],
    keep: bool,
) -> Result<Sealed, Error> {
    let mac = HmacSha256::new_from_slice(key).map_err(|_| Error::Sealed)?.chain_update(inputs).finalize().into_bytes();
    let mut digest = [0; 16];
    digest.copy_from_slice(&mac[..16]);
    let cipher = || Aes256Gcm::new_from_slice(key).map_err(|_| Error::Sealed);
    let ciphertext = if keep { Some(seal(&cipher()?, nonce, inputs, id)?) } else { None };
    Ok(Sealed { digest, ciphertext })
}

/// The inputs that were sealed for the decision `id`.
pub(super) fn open_inputs(key: &CustomerKey, id: &[u8; 16], ciphertext: &[u8]) -> Result<Vec<u8>, Error> {
    open(&Aes256Gcm::new_from_slice(key).map_err(|_| Error::Sealed)?, ciphertext, id)
}

fn seal(cipher: &Aes256Gcm, nonce: [u8; NONCE], message: &[u8], bound_to: &[u8]) -> Result<Vec<u8>, Error> {
    let mut sealed = Vec::with_capacity(NONCE + message.len() + TAG);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(message);
    let text = (&mut sealed[NONCE..]).into();
    let tag = cipher.encrypt_inout_detached(&Nonce::from(nonce), bound_to, text).map_err(|_| Error::Sealed)?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

fn open(cipher: &Aes256Gcm, sealed: &[u8], bound_to: &[u8]) -> Result<Vec<u8>, Error> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE>().ok_or(Error::Sealed)?;
    cipher.decrypt(&Nonce::from(*nonce), Payload { msg: text, aad: bound_to }).map_err(|_| Error::Sealed)
}

/// Random bytes of the operating system, asked for in larger pieces: one call for each nonce would cost more than the seal.
pub(super) struct Nonces {
    bytes: [u8; NONCE * 256],
    used: usize,
}

impl Nonces {
    pub(super) fn new() -> Self {
        Self { bytes: [0; NONCE * 256], used: NONCE * 256 }
    }

    pub(super) fn next(&mut self) -> [u8; NONCE] {
        if self.used == self.bytes.len() {
            self.bytes = random();
            self.used = 0;
        }
        let mut nonce = [0; NONCE];
        nonce.copy_from_slice(&self.bytes[self.used..self.used + NONCE]);
        self.used += NONCE;
        nonce
    }
}

/// The keys of customers that wrote lately, so that most entries need no look-up. Bounded: it starts anew when it is full.
#[derive(Default)]
pub(super) struct Cache {
    keys: HashMap<Pseudonym, CustomerKey>,
}

impl Cache {
    const MAX: usize = 200_000;

    pub(super) fn get(&self, customer: &Pseudonym) -> Option<CustomerKey> {
        self.keys.get(customer).copied()
    }

    pub(super) fn insert(&mut self, customer: Pseudonym, key: CustomerKey) {
        if self.keys.len() >= Self::MAX {
            self.keys.clear();
        }
        self.keys.insert(customer, key);
    }

    pub(super) fn remove(&mut self, customer: &Pseudonym) {
        self.keys.remove(customer);
    }
}

/// Random bytes of the operating system. Without them there is no way to go on safely.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Bytes as lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_made_once_kept_private_and_rotated() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger.keys");
        assert!(Keys::open(&path, false).is_err());
        let mut keys = Keys::open(&path, true).expect("a new key file");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        let old = keys.pseudonym("C-1");
        assert_eq!(Keys::open(&path, false).expect("the same keys").pseudonym("C-1"), old);
        let (key, wrapped) = keys.new_customer_key(&old).expect("a key");
        assert_eq!(keys.rotate().expect("a second one"), 2);
        let keys = Keys::open(&path, false).expect("both keys");
        assert_ne!(keys.pseudonym("C-1"), old);
        assert_eq!(keys.pseudonyms("C-1")[1], old);
        assert_eq!(keys.unwrap(1, &old, &wrapped).expect("the old one unwraps"), key);
        assert!(keys.unwrap(2, &old, &wrapped).is_err() && keys.unwrap(1, &keys.pseudonym("C-1"), &wrapped).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        assert!(Keys::open(&path, false).expect_err("not private").to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&path, "{\"keys\": [{\"secret\": \"s3cr3t\"}]}").expect("written");
        assert!(!Keys::open(&path, true).expect_err("no key file").to_string().contains("s3cr3t"));
    }

    #[test]
    fn sealed_inputs_open_only_with_their_key_and_for_their_decision() {
        let (key, id) = ([7; 32], [1; 16]);
        let mut nonces = Nonces::new();
        let sealed = seal_inputs(&key, nonces.next(), &id, b"inputs", true).expect("sealed");
        let ciphertext = sealed.ciphertext.expect("kept");
        assert_eq!(open_inputs(&key, &id, &ciphertext).expect("opened"), b"inputs");
        assert!(open_inputs(&[8; 32], &id, &ciphertext).is_err() && open_inputs(&key, &[2; 16], &ciphertext).is_err());
        let again = seal_inputs(&key, nonces.next(), &id, b"inputs", false).expect("sealed");
        assert!(again.ciphertext.is_none() && again.digest == sealed.digest);
    }
}
