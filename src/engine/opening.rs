//! How a deck begins, or comes back after a restart: what the ledger remembers of a name counts more than the configuration; and how an
//! idle model that could not be loaded then comes back later. What else happens to it is in `slots`.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;

use super::account::Account;
use super::capacity::Capacities;
use super::experiments::digests;
use super::shelf::{self, Loaded};
use super::slots::{Deck, Held, place};
use super::{Engine, Entry, Error, Verb};
use crate::domain::access::SERVICE;
use crate::domain::policy::Policy;
use crate::domain::policy::registry::{Registry, State};
use crate::domain::rollout::moves::Illegal;
use crate::domain::rollout::slots::Slots;
use crate::ledger::{self, Change, Kept, Ledger};

impl Deck {
    /// The deck of `entry`: as the ledger has its slots, or, where it has none or `resume` is off, with the model and policy of the
    /// configuration.
    ///
    /// Errors: a champion that cannot be loaded as it was. An idle model that cannot keeps its place, and is tried again when a move
    /// needs it.
    pub(super) fn open(entry: Entry, engine: &Engine, resume: bool) -> Result<Self, Error> {
        let Entry { name, version, policy } = entry;
        let known = match &engine.ledger {
            Some(ledger) if resume => ledger.slots(&name)?.map(|slots| (slots, ledger)),
            _ => None,
        };
        let mut held = match known {
            Some((slots, ledger)) => {
                warn_of_differences(&name, &version, &policy, &slots);
                Self::resume(&name, slots, ledger, engine)?
            }
            None => Self::begin(&name, &version, policy, engine)?,
        };
        held.come_back(&name, engine)?;
        let account = Account::open(&held.policy, &name, engine.ledger.as_ref(), engine.now_ms(), None)?;
        held.account = account.map(Arc::new);
        let capacities = Capacities::open(&held.policy, &name, engine.ledger.as_ref(), engine.now_ms(), None)?;
        held.capacities = capacities.map(Arc::new);
        Ok(Self { name, held: Mutex::new(held), staging: Mutex::new(None), effect: ArcSwapOption::empty() })
    }

    fn begin(name: &str, version: &str, policy: Arc<Policy>, engine: &Engine) -> Result<Held, Error> {
        let model =
            engine.shelf.load(name, version, engine.now_ms()).map_err(|source| unservable(name, version, source))?;
        model.fits(&policy).map_err(Error::Refused)?;
        let digest = model.model.digest().to_owned();
        let reference = shelf::policy_ref(&policy);
        // The same champion once more has not come into service only now. Slots that cannot be read are what is begun anew for.
        let before = engine.ledger.as_ref().and_then(|ledger| ledger.slots(name).ok().flatten());
        let before = before.as_ref().and_then(|slots| slots.placed(slots.champion()));
        let same = before.filter(|placed| (placed.version.as_str(), &placed.digest) == (version, &digest));
        let since_ms = same.map_or_else(|| engine.now_ms(), |placed| placed.since_ms);
        let slots = Slots::new(version.to_owned(), digest, reference.clone(), since_ms);
        if let Some(ledger) = &engine.ledger {
            // Beginning anew ends what experiments there were.
            let experiments = ledger.experiments(name)?.map(|_| Registry::default());
            ledger.change(Change {
                model: name.to_owned(),
                verb: "begin".to_owned(),
                by: SERVICE.to_owned(),
                why: "the configuration names it".to_owned(),
                result: format!("{version} is the champion"),
                slots: Some(slots.clone()),
                experiments,
                documents: vec![(Kept::Policy, reference.digest, policy.document().to_owned())],
                request: None,
            })?;
        }
        let loaded = [Some(model), None];
        Ok(Held::new(slots, loaded, policy))
    }

    fn resume(name: &str, slots: Slots, ledger: &Ledger, engine: &Engine) -> Result<Held, Error> {
        let policy = Arc::new(policy_of_record(ledger, &slots.policy.digest)?);
        let before = slots.policy_before.as_ref().map(|before| policy_of_record(ledger, &before.digest));
        let mut held = Held::new(slots, [None, None], policy);
        held.policy_before = before.transpose()?.map(Arc::new);
        let champion = held.slots.champion();
        for colour in [champion, champion.other()] {
            let Some(placed) = held.slots.placed(colour) else { continue };
            let model = engine.shelf.load_as(name, placed, engine.now_ms()).and_then(|loaded| {
                let path = engine.shelf.dir.join(name).join(&placed.version);
                let fits = loaded.fits(&held.policy);
                fits.map_err(|problems| crate::model::Error::Bundle { path, problems })?;
                Ok(loaded)
            });
            match model {
                Ok(model) => held.loaded[place(colour)] = Some(model),
                Err(error) if colour == champion => return Err(unservable(name, &placed.version, error)),
                Err(error) => {
                    tracing::error!(model = name, version = placed.version, cause = %error, "the idle model is not loaded");
                    held.unloaded = Some(error.to_string());
                }
            }
        }
        held.watch();
        Ok(held)
    }
}

impl Verb {
    /// Whether the idle model has to be loaded first, which it could not be at the start. To take its customers away it need not be: going
    /// back from a rollout waits for nothing.
    pub(super) fn needs_loading(&self, held: &Held) -> bool {
        let needs_idle = match self {
            Verb::Promote { .. } | Verb::Start(_) | Verb::Resume => true,
            Verb::RollBack => held.slots.rollout.is_none(),
            _ => false,
        };
        needs_idle && held.unloaded.is_some()
    }
}

impl Engine {
    /// Loads the idle model that could not be loaded at the start, where `verb` needs it: what kept it from that may have been mended since.
    /// Takes as long as staging does, and leaves the deck to others meanwhile.
    ///
    /// Errors: [`Error::Refused`] with what still keeps it from being loaded.
    pub(super) fn load_idle(&self, deck: &Deck, verb: &Verb) -> Result<Option<Loaded>, Error> {
        let placed = {
            let held = deck.held();
            held.slots.idle().filter(|_| verb.needs_loading(&held)).cloned()
        };
        let loaded = placed.map(|placed| self.shelf.load_as(&deck.name, &placed, self.now_ms())).transpose();
        loaded.map_err(|error| Error::Refused(shelf::reasons_of(&error)))
    }

    /// Puts what was loaded so into its slot, which may have got another use meanwhile.
    ///
    /// Errors: [`Error::Illegal`], or [`Error::Refused`] with what it does not fit.
    pub(super) fn bring_back(&self, held: &mut Held, loaded: Option<Loaded>) -> Result<(), Error> {
        let Some(loaded) = loaded else {
            let legal = held.slots.legal(&self.options.load().approvals);
            return Err(Illegal { why: "the slots have changed meanwhile; ask again".to_owned(), legal }.into());
        };
        // Experiments may have come since that only fit the champion.
        held.take_in(&loaded)?;
        held.bring_back(loaded);
        Ok(())
    }
}

impl Held {
    /// Takes over the experiments that the ledger remembers of `name`.
    fn come_back(&mut self, name: &str, engine: &Engine) -> Result<(), Error> {
        let Some(ledger) = &engine.ledger else { return Ok(()) };
        self.experiments = ledger.experiments(name)?.unwrap_or_default();
        let lasting = self.experiments.all().iter().filter(|known| known.state() != State::Ended);
        for digest in lasting.flat_map(|known| digests(&known.experiment)) {
            self.arm_policies.insert(digest.to_owned(), Arc::new(policy_of_record(ledger, digest)?));
        }
        // A program that writes them otherwise finds them under another digest: decisions have to find what they refer to.
        if let Some((digest, document)) = self.layout(&self.policy, &self.experiments)
            && ledger.document(Kept::Layout, &digest)?.is_none()
        {
            ledger.change(Change {
                model: name.to_owned(),
                verb: "resume_experiments".to_owned(),
                by: SERVICE.to_owned(),
                why: "they are written otherwise than before".to_owned(),
                result: "the experiments go on".to_owned(),
                slots: None,
                experiments: None,
                documents: vec![(Kept::Layout, digest, document)],
                request: None,
            })?;
        }
        Ok(())
    }
}

fn unservable(name: &str, version: &str, source: crate::model::Error) -> Error {
    Error::Unservable { name: name.to_owned(), version: version.to_owned(), source: Box::new(source) }
}

fn warn_of_differences(name: &str, version: &str, policy: &Policy, slots: &Slots) {
    let champion = slots.placed(slots.champion()).map_or("", |placed| &placed.version);
    if champion != version {
        tracing::warn!(
            model = name,
            champion,
            configured = version,
            "the slots of the ledger count, not the configuration"
        );
    }
    if slots.policy != shelf::policy_ref(policy) {
        tracing::warn!(
            model = name,
            in_force = slots.policy.digest,
            "the policy of the ledger counts, not the file; apply that one to change it"
        );
    }
}

/// The policy that was in force under `digest`.
fn policy_of_record(ledger: &Ledger, digest: &str) -> Result<Policy, Error> {
    let document = ledger
        .document(Kept::Policy, digest)?
        .ok_or_else(|| ledger::Error::Broken(format!("the policy {digest} that is in force is not there")))?;
    shelf::parse_policy(&document).map_err(Error::Refused)
}
