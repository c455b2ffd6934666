//! Who may call, and what: scopes, what a route needs, who a caller is, and the form of an API key with its check. Where keys are
//! kept, what the time is and how a token is verified is not known here.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Who acts when nobody asked: the service itself. No caller may have this name.
pub const SERVICE: &str = "mainstay";
/// The longest name of a caller or a role, in characters.
pub const NAME_MAX: usize = 128;

/// What every API key begins with, so that scanners of leaked secrets find it.
pub const PREFIX: &str = "msk_";
/// Characters of a key's id, which is no secret: it stands in lists and finds the key.
pub const ID_CHARS: usize = 10;
/// Characters of its secret, 5 bits each: 160 bits. Guessing is hopeless, so the hash that is kept needs no salt and no slowness; with
/// prefix and id it is all one block of SHA-256.
pub const SECRET_CHARS: usize = 32;

/// 32 characters that nothing escapes (base32, RFC 4648, in lower case).
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What a caller may do. No scope holds another one: a key has exactly those that stand in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Scope {
    /// Have decisions made on customers.
    Score,
    /// Record what customers then did.
    Outcomes,
    /// See what is on record, and how slots and experiments stand.
    Read,
    /// Move models, rollouts, policies and experiments, and simulate policies.
    Operate,
    /// Erase customers, copy the ledger, rotate its keys.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 5] = [Scope::Score, Scope::Outcomes, Scope::Read, Scope::Operate, Scope::Admin];

    /// Its name, as in a key's line and a token's claim.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Score => "score",
            Scope::Outcomes => "outcomes",
            Scope::Read => "read",
            Scope::Operate => "operate",
            Scope::Admin => "admin",
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether `scope` is one of them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Those in a list of words parted by spaces (RFC 6749, section 3.3). What is none of ours is left out: a token may be for other
    /// services too.
    pub fn of_words(words: &str) -> Self {
        let known = |word: &str| Scope::ALL.into_iter().find(|scope| scope.name() == word);
        words.split_ascii_whitespace().filter_map(known).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | (1 << scope as u8)))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Scope::ALL.iter().filter(|scope| self.has(**scope)).map(|scope| scope.name())).finish()
    }
}

/// What a route asks of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing, ever: a probe has no credentials.
    Nothing,
    /// [`Scope::Read`], unless the configuration leaves metrics open: then nothing.
    Metrics,
    /// Nothing, unless the configuration closes the contract and its page: then [`Scope::Read`].
    Contract,
    /// Credentials of any kind.
    Credentials,
    /// One scope.
    Scope(Scope),
}

/// Who calls: the holder of a key, or the subject of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name that goes on record.
    pub actor: String,
    /// What that one may do.
    pub scopes: Scopes,
    /// In which roles: these deploy, and agree to promotions.
    pub roles: Vec<String>,
}

impl Caller {
    /// Whether this one may do what `needs` asks for.
    ///
    /// Errors: the scope that is missing.
    pub fn may(&self, needs: Needs) -> Result<(), Scope> {
        match needs {
            Needs::Scope(scope) if !self.scopes.has(scope) => Err(scope),
            _ => Ok(()),
        }
    }

    /// Whether this one may make the move `verb` on slots or an experiment, where those of `deployers` deploy; an approval is given in the role
    /// `approves`. Whoever operates may stop a rollout or an experiment, and go back: harm must not wait for somebody with the right role.
    ///
    /// Errors: the roles of which one would do.
    pub fn may_move<'r>(
        &self,
        verb: &str,
        approves: Option<&'r str>,
        deployers: &'r [String],
    ) -> Result<(), Vec<&'r str>> {
        let wanted: Vec<&str> = match (verb, approves) {
            ("pause" | "abort" | "rollback" | "undo_policy" | "stop", _) => return Ok(()),
            ("approve", Some(role)) => vec![role],
            _ => deployers.iter().map(String::as_str).collect(),
        };
        let held = |role: &&str| self.roles.iter().any(|held| held == role);
        if wanted.iter().any(held) { Ok(()) } else { Err(wanted) }
    }
}

/// Whether `name` can stand on record as who acts, or as a role: some printable characters, and not the name of the service.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(char::is_control)
        && !name.eq_ignore_ascii_case(SERVICE)
}

/// The id of a key.
pub type Id = [u8; ID_CHARS];
/// What is kept of a key: its SHA-256.
pub type Hash = [u8; 32];

/// A new key, made of `random` bytes: its id, and the text that its holder sends.
pub fn new_key(random: [u8; ID_CHARS + SECRET_CHARS]) -> (String, String) {
    let text: String = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    let (id, secret) = text.split_at(ID_CHARS);
    (id.to_owned(), format!("{PREFIX}{id}_{secret}"))
}

/// The id in a key, if `text` has the form of one.
pub fn id_of(text: &[u8]) -> Option<Id> {
    let rest = text.strip_prefix(PREFIX.as_bytes())?;
    let is_ours = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    let (id, rest) = rest.split_first_chunk::<ID_CHARS>()?;
    let secret = rest.strip_prefix(b"_")?;
    (secret.len() == SECRET_CHARS && is_ours(id) && is_ours(secret)).then_some(*id)
}

/// What is kept of the key `text`.
pub fn hash(text: &[u8]) -> Hash {
    Sha256::digest(text).into()
}

/// Whether `text` is the key that `kept` is the hash of, in a time that does not depend on either.
pub fn is_right(text: &[u8], kept: &Hash) -> bool {
    hash(text).as_slice().ct_eq(kept.as_slice()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller(scopes: &[Scope], roles: &[&str]) -> Caller {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Caller { actor: "ann".to_owned(), scopes: scopes.iter().copied().collect(), roles }
    }

    #[test]
    fn a_scope_opens_what_needs_it_and_nothing_else() {
        for held in Scope::ALL {
            for asked in Scope::ALL {
                let answer = caller(&[held], &[]).may(Needs::Scope(asked));
                assert_eq!(answer, if held == asked { Ok(()) } else { Err(asked) });
            }
            assert_eq!(caller(&[held], &[]).may(Needs::Credentials), Ok(()));
        }
        assert_eq!(Scopes::of_words("score  openid admin"), [Scope::Score, Scope::Admin].into_iter().collect());
    }

    #[test]
    fn going_back_needs_no_role_and_going_on_does() {
        let deployers = ["deployer".to_owned()];
        let (plain, deployer) = (caller(&[Scope::Operate], &[]), caller(&[Scope::Operate], &["deployer"]));
        for verb in crate::domain::rollout::moves::VERBS {
            let back = ["pause", "abort", "rollback", "undo_policy"].contains(&verb);
            if verb != "approve" {
                assert_eq!(plain.may_move(verb, None, &deployers).is_ok(), back, "{verb}");
                assert_eq!(deployer.may_move(verb, None, &deployers), Ok(()), "{verb}");
                assert_eq!(deployer.may_move(verb, None, &[]).is_ok(), back, "{verb}: nobody deploys without a role");
            }
        }
        for verb in crate::domain::policy::registry::VERBS.into_iter().chain(["create"]) {
            assert_eq!(plain.may_move(verb, None, &deployers).is_ok(), verb == "stop", "{verb} an experiment");
            assert_eq!(deployer.may_move(verb, None, &deployers), Ok(()), "{verb} an experiment");
        }
        assert_eq!(deployer.may_move("approve", Some("sponsor"), &deployers), Err(vec!["sponsor"]));
        assert_eq!(caller(&[], &["sponsor"]).may_move("approve", Some("sponsor"), &deployers), Ok(()));
    }

    #[test]
    fn the_name_of_the_service_is_taken() {
        assert!(is_name("ann@example.com") && is_name("Ann B."));
        for name in ["", " ann", "Mainstay", "a\nb", &"a".repeat(129)] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_key_fits_one_block_of_the_hash() {
        // SHA-256 pads with nine bytes at least.
        assert!(PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS + 9 <= 64);
    }

    proptest! {
        #[test]
        fn a_key_is_found_by_its_id_and_is_right_by_its_hash_alone(random: [u8; ID_CHARS + SECRET_CHARS], at in 0..47_usize) {
            let (id, text) = new_key(random);
            let found = id_of(text.as_bytes()).expect("a key");
            prop_assert_eq!(found.as_slice(), id.as_bytes());
            prop_assert!(is_right(text.as_bytes(), &hash(text.as_bytes())));
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'b' { b'c' } else { b'b' };
            prop_assert!(!is_right(&other, &hash(text.as_bytes())));
        }

        #[test]
        fn what_has_not_the_form_of_a_key_has_no_id(text in "[a-z2-7_]{0,60}") {
            let has_form = text.len() == 47 && text.starts_with("msk_") && text.as_bytes()[14] == b'_'
                && !text[4..14].contains('_') && !text[15..].contains('_');
            prop_assert_eq!(id_of(text.as_bytes()).is_some(), has_form);
        }
    }
}
