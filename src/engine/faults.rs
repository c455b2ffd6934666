//! Tests alone: a deterministic simulation of slots, rollouts, the ledger and the budget under faults. Random moves of operators, looks,
//! customers, failing writes and crashes, by a seed; the real engine and the real ledger on a simulated clock. After every step a model
//! of a few lines, which is to be seen to be right, says how all of it has to stand.

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fmt::Write as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, LazyLock};
    use std::time::{Duration, Instant, SystemTime};

    use rusqlite::Connection;

    use crate::config::{Config, Sources};
    use crate::domain::decision::Arm;
    use crate::domain::id::DecisionId;
    use crate::domain::policy::Policy;
    use crate::domain::record::{Record, Value};
    use crate::domain::rollout::guardrail::{Limits, Verdict};
    use crate::domain::rollout::slots::{Role, Slots};
    use crate::domain::rollout::{End, Exposure, Plan, Step};
    use crate::domain::score::Score;
    use crate::engine::serving::Who;
    use crate::engine::shelf::{Shelf, parse_policy, policy_ref};
    use crate::engine::{Ask, Engine, Entry, Error, Options, Setup, Verb};
    use crate::ledger::{self, Ledger, Patience, Promise, Reading};
    use crate::model::{Choice, LoadOptions, Runtime};
    use crate::telemetry::Metrics;

    /// Seeds of one run of the tests, `MAINSTAY_SEEDS` unless it says otherwise, and how many steps each has.
    const SEEDS: u64 = 500;
    const STEPS: usize = 40;
    /// Seeds are shared among so many threads, each with a clock of its own.
    const THREADS: usize = 2;
    /// Where files are kept in memory, and how many bytes have to be free there: a container often has 64 MB, which is soon full.
    const MEMORY: &str = "/dev/shm";
    const MEMORY_MIN: u64 = 512 << 20;
    const NAME: &str = "telco-churn";
    const VERSIONS: [&str; 3] = ["1.0.0", "1.1.0", "1.2.0"];
    /// A role that has to agree to promotions, in half of the runs.
    const ROLE: &str = "risk";
    /// A day's budget of the policies that have one: enough for three e-mails.
    const BUDGET: f64 = 35.0;
    /// 2026-11-22, at noon.
    const BEGIN_MS: u64 = 1_795_348_800_000;

    /// One for each thread, and one that stands still.
    static CLOCKS: [AtomicU64; THREADS + 1] = [const { AtomicU64::new(BEGIN_MS) }; THREADS + 1];

    fn clock<const THREAD: usize>() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(CLOCKS[THREAD].load(Ordering::Relaxed))
    }

    /// The policies that there are: two with a budget, one without.
    static POLICIES: LazyLock<[Arc<Policy>; 3]> = LazyLock::new(|| {
        let base = include_str!("../../models/policy/default.toml");
        let with = |rest: &str| {
            let document =
                base.replacen("name = \"default\"", &format!("name = \"default\"\n# {}", rest.len()), 1) + rest;
            Arc::new(parse_policy(&document).expect("a policy"))
        };
        let budget = format!("\n[budget]\namount = {BUDGET}\nperiod = \"day\"\n");
        [with(&budget), with(&format!("{budget}\n")), with("")]
    });

    static DIGESTS: LazyLock<[String; 3]> =
        LazyLock::new(|| POLICIES.each_ref().map(|policy| policy_ref(policy).digest));

    static CONFIG: LazyLock<Config> =
        LazyLock::new(|| Config::load(&Sources::of_process(None, Vec::new())).expect("a configuration"));

    /// What may be asked for.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Ordered {
        Stage(usize),
        Retire,
        Promote { force: bool },
        RollBack,
        Start(usize),
        Pause,
        Resume,
        Advance,
        Abort,
        Approve,
        Apply(usize),
        Undo,
    }

    /// The model: how it has to stand.
    #[derive(Debug, Clone, PartialEq)]
    struct Expected {
        champion: usize,
        idle: Option<Idle>,
        policy: usize,
        before: Option<usize>,
    }

    #[derive(Debug, Clone, PartialEq)]
    struct Idle {
        version: usize,
        role: Role,
        agreed: Option<&'static str>,
        tried: Option<Tried>,
    }

    #[derive(Debug, Clone, PartialEq)]
    struct Tried {
        plan: usize,
        step: usize,
        since_ms: u64,
        paused: bool,
    }

    /// What is known of the challenger since its step began: what came in, and what the last look made of it.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Seen {
        fed: Verdict,
        looked: Verdict,
    }

    const NOTHING: Seen = Seen { fed: Verdict::Hold, looked: Verdict::Hold };

    impl Expected {
        fn begin() -> Self {
            Self { champion: 0, idle: None, policy: 0, before: None }
        }

        /// How it stands after `ordered`, if that is legal.
        fn after(&self, ordered: Ordered, by: &'static str, at_ms: u64, approval: bool, seen: Seen) -> Option<Self> {
            let mut next = self.clone();
            let role = self.idle.as_ref().map(|idle| idle.role);
            let tried = self.idle.as_ref().and_then(|idle| idle.tried.as_ref());
            let waits = matches!(role, Some(Role::Staged | Role::Challenger));
            let put = |version, role| Some(Idle { version, role, agreed: None, tried: None });
            match ordered {
                Ordered::Stage(version) => {
                    (matches!(role, None | Some(Role::Staged)) && version != self.champion).then_some(())?;
                    next.idle = put(version, Role::Staged);
                }
                Ordered::Retire => {
                    matches!(role, Some(Role::Staged | Role::Standby)).then_some(())?;
                    next.idle = None;
                }
                Ordered::Promote { force } => {
                    let idle = self.idle.as_ref().filter(|_| waits)?;
                    let passed = tried.is_none_or(|tried| tried.passes(at_ms, seen.looked) && tried.is_last());
                    (force || passed).then_some(())?;
                    (!approval || idle.agreed.is_some_and(|agreed| agreed != by)).then_some(())?;
                    next.champion = idle.version;
                    next.idle = put(self.champion, Role::Standby);
                }
                Ordered::RollBack if role == Some(Role::Standby) => {
                    next.champion = self.idle.as_ref()?.version;
                    next.idle = put(self.champion, Role::Staged);
                }
                Ordered::RollBack | Ordered::Abort => {
                    tried?;
                    next.idle = put(self.idle.as_ref()?.version, Role::Staged);
                }
                Ordered::Start(plan) => {
                    let idle = next.idle.as_mut().filter(|idle| idle.role == Role::Staged)?;
                    idle.role = Role::Challenger;
                    idle.tried = Some(Tried { plan, step: 0, since_ms: at_ms, paused: false });
                }
                Ordered::Pause | Ordered::Resume => {
                    let tried = next.idle.as_mut()?.tried.as_mut()?;
                    (tried.paused == (ordered == Ordered::Resume)).then_some(())?;
                    tried.paused = ordered == Ordered::Pause;
                }
                Ordered::Advance => {
                    let tried = next.idle.as_mut()?.tried.as_mut().filter(|tried| !tried.is_last())?;
                    (tried.step, tried.since_ms) = (tried.step + 1, at_ms);
                }
                Ordered::Approve => {
                    let idle = next.idle.as_mut().filter(|idle| approval && waits && idle.agreed.is_none())?;
                    idle.agreed = Some(by);
                }
                Ordered::Apply(policy) => {
                    (tried.is_none() && policy != self.policy).then_some(())?;
                    next.before = Some(std::mem::replace(&mut next.policy, policy));
                }
                Ordered::Undo => {
                    tried.is_none().then_some(())?;
                    next.policy = next.before.take()?;
                }
            }
            Some(next)
        }

        /// What a look does by itself: the move, and how it stands then.
        fn looked_at(&self, at_ms: u64, approval: bool, fed: Verdict) -> Option<(&'static str, Self)> {
            let tried = self.idle.as_ref()?.tried.as_ref()?;
            let seen = Seen { fed, looked: fed };
            let (verb, ordered) = match fed {
                Verdict::Fail => ("rollback", Ordered::Abort),
                Verdict::Pass if tried.passes(at_ms, fed) && !tried.paused => match tried.is_last() {
                    false => ("advance", Ordered::Advance),
                    true => ("promote", Ordered::Promote { force: false }),
                },
                _ => return None,
            };
            Some((verb, self.after(ordered, "mainstay", at_ms, approval, seen)?))
        }

        /// Whether `slots` are that.
        fn is(&self, slots: &Slots) -> bool {
            let version = |placed: Option<&str>| VERSIONS.iter().position(|version| placed == Some(version));
            let idle = slots.idle().map(|placed| Idle {
                version: version(Some(&placed.version)).expect("a version"),
                role: placed.role,
                agreed: placed
                    .approvals
                    .first()
                    .map(|approval| OPERATORS.into_iter().find(|by| *by == approval.by).expect("one")),
                tried: slots.rollout.as_ref().map(|rollout| Tried {
                    plan: plans().iter().position(|plan| *plan == rollout.plan).expect("a plan"),
                    step: rollout.step,
                    since_ms: rollout.step_since_ms,
                    paused: rollout.paused,
                }),
            });
            let policy = |digest: &str| DIGESTS.iter().position(|known| known == digest);
            let found = Expected {
                champion: version(slots.placed(slots.champion()).map(|placed| placed.version.as_str()))
                    .expect("a champion"),
                idle,
                policy: policy(&slots.policy.digest).expect("a policy"),
                before: slots.policy_before.as_ref().map(|before| policy(&before.digest).expect("a policy")),
            };
            *self == found
        }
    }

    impl Tried {
        fn passes(&self, at_ms: u64, verdict: Verdict) -> bool {
            verdict == Verdict::Pass && at_ms - self.since_ms >= plans()[self.plan].steps[self.step].bake_secs * 1_000
        }

        fn is_last(&self) -> bool {
            self.step + 1 == plans()[self.plan].steps.len()
        }
    }

    const OPERATORS: [&str; 2] = ["ann", "bob"];

    /// Plans of rollouts, all of them legal: a shadow, a shadow and canaries, a canary up to all customers.
    fn plans() -> &'static [Plan; 3] {
        static PLANS: LazyLock<[Plan; 3]> = LazyLock::new(|| {
            let step = |exposure, share, bake_secs| Step { exposure, share, bake_secs };
            let plan = |steps: &[Step]| Plan { steps: steps.to_vec(), limits: limits(), promote: true };
            let plans = [
                plan(&[step(Exposure::Shadow, 1.0, 30)]),
                plan(&[
                    step(Exposure::Shadow, 0.5, 0),
                    step(Exposure::Canary, 0.1, 60),
                    step(Exposure::Canary, 0.5, 0),
                ]),
                plan(&[step(Exposure::Canary, 0.5, 10), step(Exposure::Canary, 1.0, 90)]),
            ];
            assert!(plans.iter().all(|plan| plan.problems().is_empty()));
            plans
        });
        &PLANS
    }

    /// So that a thousand good customers pass, one score that is none fails, and nothing else says anything.
    fn limits() -> Limits {
        Limits {
            requests_min: 60,
            error_margin: 0.9,
            latency_ratio_max: 1e6,
            latency_floor_us: 1e9,
            psi_max: 1e3,
            tier_shift_max: 1.0,
            churn_margin: 10.0,
            fairness_margin: 1.0,
            outcomes_min: 0,
            alpha: 0.5,
        }
    }

    /// One run: a service, its disk, and the model beside it.
    struct Run {
        thread: usize,
        random: fastrand::Rng,
        /// The root of all directories, and that of the ledger of now.
        root: PathBuf,
        lives: usize,
        engine: Arc<Engine>,
        runtime: tokio::runtime::Runtime,
        approval: bool,
        /// Writes fail.
        sick: bool,
        now: Expected,
        seen: Seen,
        /// What is on record, where that is not all of it: a rollback of the service's own.
        owed: Option<Expected>,
        /// The verbs on record, in order, and the one that is owed.
        journal: Vec<&'static str>,
        /// Decisions that were answered.
        answered: Vec<DecisionId>,
        /// What they cost, in units.
        spent: f64,
        /// The last request with a key, and what it was answered.
        request: Option<(Ordered, Ask, String)>,
        trace: String,
    }

    impl Run {
        fn new(seed: u64, thread: usize, root: &Path) -> Self {
            CLOCKS[thread].store(BEGIN_MS, Ordering::Relaxed);
            // Ids and samples are drawn from the thread's own.
            fastrand::seed(seed);
            let mut random = fastrand::Rng::with_seed(seed);
            let approval = random.bool();
            let root = root.join(seed.to_string());
            let dir = root.join("0");
            fs::create_dir_all(&dir).expect("a directory");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let engine = open(&dir, thread, approval);
            Self {
                thread,
                random,
                root,
                lives: 0,
                engine,
                runtime,
                approval,
                sick: false,
                now: Expected::begin(),
                seen: NOTHING,
                owed: None,
                journal: vec!["begin"],
                answered: Vec::new(),
                spent: 0.0,
                request: None,
                trace: String::new(),
            }
        }

        fn dir(&self) -> PathBuf {
            self.root.join(self.lives.to_string())
        }

        fn now_ms(&self) -> u64 {
            CLOCKS[self.thread].load(Ordering::Relaxed)
        }

        fn step(&mut self) {
            let what = self.random.u8(..100);
            match what {
                0..=29 => self.order(),
                30..=49 => self.tick(),
                50..=62 => self.feed(),
                63..=76 => self.decide(),
                77..=84 => self.wait(),
                85..=90 => self.fall_ill_or_heal(),
                91..=93 => self.two_at_once(),
                94..=96 => self.crash(),
                97..=98 => self.restart(),
                _ => self.repeat(),
            }
            self.check();
        }

        fn note(&mut self, what: std::fmt::Arguments) {
            let _ = writeln!(self.trace, "  {what}");
        }

        fn wait(&mut self) {
            let more_ms = self.random.u64(1..120_000);
            CLOCKS[self.thread].fetch_add(more_ms, Ordering::Relaxed);
            self.note(format_args!("{more_ms} ms later"));
        }

        fn draw(&mut self) -> Ordered {
            let random = &mut self.random;
            match random.u8(..16) {
                0..=2 => Ordered::Stage(random.usize(..VERSIONS.len())),
                3 if random.bool() => Ordered::Retire,
                4 => Ordered::Promote { force: random.bool() },
                5 => Ordered::RollBack,
                3 | 6..=8 => Ordered::Start(random.usize(..plans().len())),
                9 => Ordered::Pause,
                10 => Ordered::Resume,
                11 => Ordered::Advance,
                12 if random.bool() => Ordered::Abort,
                13 => Ordered::Approve,
                14 => Ordered::Apply(random.usize(..POLICIES.len())),
                _ => Ordered::Undo,
            }
        }

        /// An operator asks for something: it is done when it is legal and can be written down, and else nothing is.
        fn order(&mut self) {
            let by = OPERATORS[self.random.usize(..2)];
            let mut ordered = self.draw();
            // Mostly what is legal, so that a run gets somewhere.
            for _ in 0..if self.random.u8(..5) > 0 { 16 } else { 0 } {
                if self.now.after(ordered, by, self.now_ms(), self.approval, self.seen).is_none() {
                    ordered = self.draw();
                }
            }
            let key = self.random.bool().then(|| (format!("k-{}", self.random.u64(..)), "f".to_owned()));
            let ask = Ask { by: by.to_owned(), why: String::new(), key };
            let next = self.now.after(ordered, by, self.now_ms(), self.approval, self.seen);
            let result = self.engine.act(NAME, verb(ordered), &ask);
            self.note(format_args!("{by}: {ordered:?}: {:?}", result.as_ref().map(|moved| &moved.verb)));
            match (next, result) {
                (Some(next), Ok(moved)) => {
                    assert!(!self.sick, "LAW journalled-first: it was done, and cannot have been written");
                    if ask.key.is_some() {
                        self.request = Some((ordered, ask, moved.result));
                    }
                    self.moved(name(ordered), next);
                }
                (Some(_), Err(error)) => assert!(self.sick, "a legal move was refused: {error}"),
                (None, Ok(_)) => panic!("LAW legal: it was done and is not legal"),
                (None, Err(Error::Illegal(_))) => {}
                // To say so in the history may fail, too; that it is illegal is said first.
                (None, Err(error)) => panic!("it is not legal, and the answer is: {error}"),
            }
        }

        /// A move is in force, and on record behind what was owed.
        fn moved(&mut self, verb: &'static str, next: Expected) {
            self.owed = None;
            self.journal.push(verb);
            self.stands(next);
        }

        fn stands(&mut self, next: Expected) {
            let step = |of: &Expected| {
                of.idle
                    .as_ref()
                    .and_then(|idle| idle.tried.clone().map(|tried| (tried.plan, tried.step, tried.since_ms)))
            };
            if step(&self.now) != step(&next) {
                self.seen = NOTHING;
            }
            self.now = next;
        }

        /// The service looks at its rollout, and journals what it owes.
        fn tick(&mut self) {
            let at_ms = self.now_ms();
            let expected = self.now.looked_at(at_ms, self.approval, self.seen.fed);
            self.engine.tick();
            if self.now.idle.as_ref().is_some_and(|idle| idle.tried.is_some()) {
                self.seen.looked = self.seen.fed;
            }
            self.note(format_args!("look: {:?}", expected.as_ref().map(|(verb, _)| verb)));
            match expected {
                // At once, whether it can be written or not.
                Some((verb @ "rollback", next)) => {
                    let owed = self.now.clone();
                    self.stands(next);
                    self.owed = Some(owed);
                    self.journal.push(verb);
                }
                Some((verb, next)) if !self.sick => self.moved(verb, next),
                _ => {}
            }
        }

        /// What both arms did: enough that is good, or one score that is none.
        fn feed(&mut self) {
            let serving = self.engine.serving(None).expect("it serves");
            let Some(trial) = &serving.trial else { return };
            let is_good = self.random.u8(..4) > 0;
            let who = |ticket| Who { ticket, segment: None };
            let score = Score::new(0.4).expect("a score");
            if is_good {
                for arm in [Arm::Champion, Arm::Challenger] {
                    for ticket in 0..100 {
                        trial.started(arm);
                        trial.scored(arm, score, who(ticket + if arm == Arm::Champion { 1_000 } else { 0 }));
                    }
                    (0..1_000).for_each(|_| trial.timed(arm, Duration::from_micros(5)));
                }
            } else {
                trial.started(Arm::Challenger);
                trial.failed(Arm::Challenger, Some(&crate::model::Error::NotAProbability), who(7));
            }
            let fed = if is_good && self.seen.fed != Verdict::Fail { Verdict::Pass } else { Verdict::Fail };
            self.seen.fed = fed;
            self.note(format_args!("evidence: {fed:?}"));
            if self.random.bool() {
                self.wait();
                self.tick();
            }
        }

        /// A customer: by one model and one policy, which are those in force, and on record before it is answered.
        fn decide(&mut self) {
            let serving = self.engine.serving(None).expect("it serves");
            let customer = format!("c-{}", self.random.u16(..));
            let record = record(&customer);
            let decided = self.engine.decide(&serving, &record, b"{}", None, None);
            let kept = decided.and_then(|(decision, _, receipt)| {
                self.runtime.block_on(receipt.kept())?;
                Ok(decision)
            });
            self.note(format_args!(
                "customer: {:?}",
                kept.as_ref().map(|decision| (decision.arm, decision.choice.intervention))
            ));
            match kept {
                Ok(decision) => {
                    assert!(!self.sick, "LAW recorded: it was answered, and cannot have been written");
                    let model = match decision.arm {
                        Arm::Champion => self.now.champion,
                        Arm::Challenger => {
                            self.now.idle.as_ref().expect("LAW one-pair: a challenger that is none").version
                        }
                    };
                    assert_eq!(decision.model.version, VERSIONS[model], "LAW one-pair: another model answered");
                    assert_eq!(
                        decision.policy.version(),
                        POLICIES[self.now.policy].version(),
                        "LAW one-pair: another policy answered"
                    );
                    self.answered.push(decision.id);
                    let cost = decision.intervention().cost.units();
                    self.spent += cost;
                    let is_bound = decision.policy.budget().is_some() && cost > 0.0;
                    assert!(!is_bound || self.spent <= BUDGET, "LAW budget: {} are spent", self.spent);
                }
                Err(Error::Ledger(_)) if self.sick => {}
                Err(error) => panic!("a legal customer was not answered: {error}"),
            }
        }

        /// The disk stops taking writes, at some point of a transaction, or takes them again.
        fn fall_ill_or_heal(&mut self) {
            let database = Connection::open(self.dir().join("ledger.db")).expect("the database");
            database.busy_timeout(Duration::from_secs(10)).expect("a timeout");
            self.sick = !self.sick;
            let sql = if self.sick {
                let at = ["BEFORE INSERT ON entry", "AFTER INSERT ON entry", "BEFORE INSERT ON meta"]
                    [self.random.usize(..3)];
                let how = ["ABORT", "FAIL", "ROLLBACK"][self.random.usize(..3)];
                format!("CREATE TRIGGER sick {at} BEGIN SELECT RAISE({how}, 'the disk is full'); END")
            } else {
                "DROP TRIGGER sick".to_owned()
            };
            database.execute_batch(&sql).expect("a trigger");
            self.note(format_args!("{sql}"));
        }

        /// Both operators ask for the same at the same time: at most one gets it.
        fn two_at_once(&mut self) {
            let ordered = match self.random.u8(..4) {
                0 => Ordered::Promote { force: true },
                1 => Ordered::RollBack,
                2 => Ordered::Start(self.random.usize(..plans().len())),
                _ => Ordered::Retire,
            };
            let ask = |by: &str| Ask { by: by.to_owned(), why: String::new(), key: None };
            let engine = &self.engine;
            let results = std::thread::scope(|scope| {
                let both = OPERATORS.map(|by| scope.spawn(move || engine.act(NAME, verb(ordered), &ask(by)).is_ok()));
                both.map(|one| one.join().expect("no panic"))
            });
            self.note(format_args!("both: {ordered:?}: {results:?}"));
            let done = results.iter().filter(|done| **done).count();
            assert!(done <= 1, "LAW one-wins: both were told that it was done");
            let next =
                OPERATORS.iter().find_map(|by| self.now.after(ordered, by, self.now_ms(), self.approval, self.seen));
            match next {
                Some(next) if done == 1 => {
                    assert!(!self.sick, "LAW journalled-first: it was done, and cannot have been written");
                    self.moved(name(ordered), next);
                }
                Some(_) => assert!(self.sick, "a legal move was refused to both"),
                None => assert_eq!(done, 0, "LAW legal: it was done and is not legal"),
            }
        }

        /// The last request with a key comes again: it is answered the same, and nothing is done.
        fn repeat(&mut self) {
            let Some((ordered, ask, result)) = self.request.clone() else { return };
            let again = self.engine.act(NAME, verb(ordered), &ask).expect("it was answered once");
            assert!(again.repeated && again.result == result, "LAW once: {again:?}");
            self.note(format_args!("again: {ordered:?}"));
        }

        /// `kill -9`, and a start on the files as they lay there. What nobody was told of may be there or not, and be torn.
        fn crash(&mut self) {
            // A reader keeps the log from beginning anew between the two copies.
            let reader = Connection::open(self.dir().join("ledger.db")).expect("the database");
            reader.execute_batch("BEGIN; SELECT count(*) FROM meta;").expect("a snapshot");
            let acknowledged = fs::metadata(self.dir().join("ledger.db-wal")).map_or(0, |found| found.len());
            let next = self.root.join((self.lives + 1).to_string());
            fs::create_dir_all(&next).expect("a directory");
            // The database first: what is copied into it meanwhile is in the log still.
            for file in ["ledger.keys", "ledger.db", "ledger.db-wal"] {
                let _ = fs::copy(self.dir().join(file), next.join(file));
            }
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(next.join("ledger.keys"), mode).expect("a mode");
            let log = next.join("ledger.db-wal");
            let mut bytes = fs::read(&log).unwrap_or_default();
            drop(reader);
            let safe = (acknowledged as usize).min(bytes.len());
            bytes.truncate(self.random.usize(safe..=bytes.len()));
            bytes.extend((0..self.random.usize(..200)).map(|_| self.random.u8(..)));
            fs::write(&log, bytes).expect("written");
            let died = std::mem::replace(&mut self.engine, open(&next, self.thread, self.approval));
            drop(died);
            let _ = fs::remove_dir_all(self.dir());
            self.lives += 1;
            self.note(format_args!("killed"));
            self.come_back();
        }

        /// A stop in order, and a start.
        fn restart(&mut self) {
            self.engine.close();
            if !self.sick {
                self.owed = None;
            }
            // The lock goes with the last of it.
            let next = self.root.join((self.lives + 1).to_string());
            fs::rename(self.dir(), &next).expect("renamed");
            self.engine = open(&next, self.thread, self.approval);
            self.lives += 1;
            self.note(format_args!("restarted"));
            self.come_back();
        }

        /// What was journalled is what a start serves; what was still owed is there as a whole, or not at all.
        fn come_back(&mut self) {
            self.seen = NOTHING;
            let slots = self.engine.standing(NAME).expect("it stands").slots;
            if let Some(owed) = self.owed.take()
                && !self.now.is(&slots)
            {
                assert!(owed.is(&slots), "LAW restart: neither before nor after what was owed: {slots:?}");
                self.journal.pop();
                self.now = owed;
            }
            assert!(self.now.is(&slots), "LAW restart: expected {:?}, found {slots:?}", self.now);
            for id in &self.answered {
                let found = self.engine.decision_of_record(*id).expect("the ledger reads");
                assert!(found.is_some(), "LAW recorded: {id} was answered, and is not on record after a start");
            }
        }

        /// How all of it has to stand, after every step.
        fn check(&mut self) {
            let standing = self.engine.standing(NAME).expect("it stands");
            let slots = &standing.slots;
            assert!(slots.problems().is_empty(), "LAW slots: {:?}", slots.problems());
            assert!(self.now.is(slots), "LAW model: expected {:?}, found {slots:?}", self.now);
            // What serves is one snapshot of that.
            let serving = self.engine.serving(None).expect("it serves");
            assert_eq!(serving.model.id().version, VERSIONS[self.now.champion], "LAW one-pair: the champion");
            assert_eq!(serving.policy.version(), POLICIES[self.now.policy].version(), "LAW one-pair: the policy");
            let trial = serving.trial.as_ref();
            assert_eq!(trial.is_some(), slots.rollout.is_some(), "LAW one-pair: the trial");
            if let Some((trial, rollout)) = trial.zip(slots.rollout.as_ref()) {
                let step = rollout.at();
                assert_eq!(
                    (trial.exposure, trial.share),
                    (step.exposure, step.share),
                    "LAW plan: the share is that of the step"
                );
                assert!(Arc::ptr_eq(&trial.policy, &serving.policy), "LAW one-pair: the policy of the trial");
                let challenger = self.now.idle.as_ref().map(|idle| VERSIONS[idle.version]);
                assert_eq!(
                    Some(trial.challenger.model.id().version.as_str()),
                    challenger,
                    "LAW one-pair: the challenger"
                );
            }
            // What is in service was journalled before, but for a rollback that nobody could wait for.
            let recorded = self.engine.ledger().expect("a ledger").slots(NAME).expect("it reads").expect("slots");
            if standing.journalled {
                self.owed = None;
                assert_eq!(recorded, *slots, "LAW journalled-first");
            } else {
                let owed = self.owed.as_ref().expect("LAW journalled-first: something is not on record");
                assert!(owed.is(&recorded) || recorded == *slots, "LAW journalled-first: {recorded:?}");
                assert_eq!(
                    slots.last_rollout.as_ref().map(|ended| ended.end),
                    Some(End::RolledBack),
                    "LAW journalled-first"
                );
            }
            if let Some(balance) = &standing.balance {
                // What could not be recorded may count until the next start: less is better than more.
                assert!(balance.spent.units() >= self.spent, "LAW budget: {} are spent, and {balance:?}", self.spent);
            }
        }

        /// At the end the disk is whole: all that is owed is written soon, the history has each move once and in order, the books say what
        /// was spent, and the chain is whole.
        fn end(&mut self) {
            if self.sick {
                self.fall_ill_or_heal();
            }
            let begun = Instant::now();
            while !self.engine.standing(NAME).expect("it stands").journalled {
                assert!(
                    begun.elapsed() < Duration::from_secs(10),
                    "LAW owed: it is not journalled as soon as it can be"
                );
                // Evidence may be there that moves it on.
                let expected = self.now.looked_at(self.now_ms(), self.approval, self.seen.fed);
                assert!(expected.is_none() || self.owed.is_none(), "a rollback leaves nothing to look at");
                self.engine.tick();
                std::thread::yield_now();
            }
            self.check();
            let history = self.engine.history(NAME, i64::MAX, 1_000).expect("a history");
            let told = history.iter().rev().map(|entry| entry.body["verb"].as_str().unwrap_or_default().to_owned());
            assert_eq!(told.collect::<Vec<_>>(), self.journal, "LAW history: each move once and in order");
            let ledger = self.engine.ledger().expect("a ledger");
            let day_ms = 86_400_000;
            let spending = ledger.spending(NAME, (BEGIN_MS / day_ms * day_ms) as i64..i64::MAX).expect("spending");
            let mut spent = 0.0;
            for group in &spending.groups {
                let policy = parse_policy(&group.policy_document).expect("a policy");
                let cost =
                    policy.interventions().iter().find(|known| known.action == group.action).expect("an action").cost;
                spent += cost.units() * group.count as f64;
            }
            assert_eq!(spent, self.spent, "LAW budget: the books say otherwise");
            self.engine.close();
            let found = Reading::open(&self.dir()).expect("a ledger").verify(None).expect("a verification");
            assert_eq!(found.problems, Vec::<String>::new(), "LAW chain");
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    fn name(ordered: Ordered) -> &'static str {
        match ordered {
            Ordered::Stage(_) => "stage",
            Ordered::Retire => "retire",
            Ordered::Promote { .. } => "promote",
            Ordered::RollBack => "rollback",
            Ordered::Start(_) => "start",
            Ordered::Pause => "pause",
            Ordered::Resume => "resume",
            Ordered::Advance => "advance",
            Ordered::Abort => "abort",
            Ordered::Approve => "approve",
            Ordered::Apply(_) => "apply_policy",
            Ordered::Undo => "undo_policy",
        }
    }

    fn verb(ordered: Ordered) -> Verb {
        match ordered {
            Ordered::Stage(at) => Verb::Stage { version: VERSIONS[at].to_owned(), allow_breaking: true, replay: 0 },
            Ordered::Retire => Verb::Retire,
            Ordered::Promote { force } => Verb::Promote { force },
            Ordered::RollBack => Verb::RollBack,
            Ordered::Start(plan) => Verb::Start(Box::new(plans()[plan].clone())),
            Ordered::Pause => Verb::Pause,
            Ordered::Resume => Verb::Resume,
            Ordered::Advance => Verb::Advance,
            Ordered::Abort => Verb::Abort,
            Ordered::Approve => Verb::Approve(ROLE.to_owned()),
            Ordered::Apply(policy) => Verb::ApplyPolicy(POLICIES[policy].document().to_owned()),
            Ordered::Undo => Verb::UndoPolicy,
        }
    }

    /// A customer whom every model takes for one who leaves.
    fn record(customer: &str) -> Record<'_> {
        static FEATURES: LazyLock<HashMap<String, serde_json::Value>> = LazyLock::new(|| {
            let customer: serde_json::Value =
                serde_json::from_str(include_str!("../../tests/data/customer.json")).expect("JSON");
            serde_json::from_value(customer["features"].clone()).expect("features")
        });
        let value = |value: &'static serde_json::Value| match value {
            serde_json::Value::Number(number) => Value::Number(number.as_f64().expect("a number")),
            value => Value::Text(value.as_str().expect("a text").into()),
        };
        let features = FEATURES.iter().map(|(name, found)| (name.as_str().into(), value(found))).collect();
        Record { customer_id: customer.into(), features, context: Vec::new(), reasons: 0, counterfactuals: 0 }
    }

    fn open(dir: &Path, thread: usize, approval: bool) -> Arc<Engine> {
        let clock = [clock::<0>, clock::<1>, clock::<THREADS>][thread];
        let options = ledger::Options {
            dir: dir.to_owned(),
            promise: Promise::Committed,
            commit_interval_us: 0,
            ..CONFIG.ledger.clone()
        };
        let ledger = Ledger::open(&options, "simulated", clock).expect("a ledger");
        let runtime = Runtime::load(&CONFIG.runtime.library).expect("scripts/fetch-onnxruntime.sh was run");
        let load = LoadOptions { lanes: 1, row_p99_us_max: 1_000_000, evaluator: Choice::Auto, turns: None };
        let approvals = if approval { vec![ROLE.to_owned()] } else { Vec::new() };
        let engine = Engine::open(Setup {
            retraining: None,
            shelf: Shelf { runtime, dir: CONFIG.models.dir.clone(), options: load, counts: true },
            entries: vec![Entry {
                name: NAME.to_owned(),
                version: VERSIONS[0].to_owned(),
                policy: POLICIES[0].clone(),
            }],
            resume: true,
            ledger: Some(ledger),
            options: Options { approvals, compliance_last: 0, ..CONFIG.rollouts.clone() },
            insight: CONFIG.insight.clone(),
            metrics: Arc::new(Metrics::new()),
            clock,
            read: crate::http::read_record,
        });
        Arc::new(engine.expect("an engine"))
    }

    /// Runs one seed: the law that is broken, with the steps that led there.
    fn run(seed: u64, thread: usize, root: &Path) -> Result<(), String> {
        let mut trace = String::new();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut run = Run::new(seed, thread, root);
            for _ in 0..STEPS {
                let result = catch_unwind(AssertUnwindSafe(|| run.step()));
                if let Err(cause) = result {
                    trace.clone_from(&run.trace);
                    std::panic::resume_unwind(cause);
                }
            }
            trace.clone_from(&run.trace);
            run.end();
        }));
        result.map_err(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
            format!("{trace}MAINSTAY_SEED={seed}: {}", text.unwrap_or_default())
        })
    }

    /// `MAINSTAY_SEED=…` runs one seed alone, `MAINSTAY_SEEDS=…` as many as it says.
    #[test]
    fn no_fault_breaks_a_law() {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seeds = match number("MAINSTAY_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("MAINSTAY_SEEDS").unwrap_or(SEEDS),
        };
        let has_room = rustix::fs::statvfs(MEMORY).is_ok_and(|found| found.f_bavail * found.f_frsize > MEMORY_MIN);
        let place = if has_room { MEMORY.into() } else { std::env::temp_dir() };
        let root = tempfile::tempdir_in(place).expect("a directory");
        let next = AtomicU64::new(seeds.start);
        let broken: Vec<String> = std::thread::scope(|scope| {
            let (next, seeds, root) = (&next, &seeds, root.path());
            let work = move |thread: usize| {
                let mut take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed));
                std::iter::from_fn(&mut take).find_map(|seed| run(seed, thread, root).err())
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().filter_map(|thread| thread.join().expect("a thread")).collect()
        });
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    /// A disk that does not go on until what is given is used: by SQL that is in force when it does.
    fn stall(dir: &Path) -> impl FnOnce(&str) {
        let database = Connection::open(dir.join("ledger.db")).expect("the database");
        database.busy_timeout(Duration::from_secs(10)).expect("a timeout");
        database.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        move |sql: &str| database.execute_batch(&format!("{sql}; COMMIT")).expect("it goes on")
    }

    /// Asks for what the writer is in the middle of when it is told to be late.
    fn is_late(engine: &Engine, ordered: Ordered, ask: &Ask) {
        loop {
            match engine.act(NAME, verb(ordered), ask) {
                Err(Error::Late) => return,
                // The writer had not come to it, so it was withdrawn.
                Err(Error::Ledger(ledger::Error::Late)) => {}
                other => panic!("nothing can be written, and the answer is {other:?}"),
            }
        }
    }

    /// Looks until what is in force is what is on record: the champion, and whether there is a rollout.
    fn settled(engine: &Engine) -> (String, bool) {
        let begun = Instant::now();
        loop {
            engine.tick();
            let standing = engine.standing(NAME).expect("it stands");
            if standing.journalled {
                let recorded = engine.ledger().expect("a ledger").slots(NAME).expect("it reads").expect("slots");
                assert_eq!(recorded, standing.slots);
                let serving = engine.serving(None).expect("it serves");
                return (serving.model.id().version.clone(), serving.trial.is_some());
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it is not settled as soon as it can be");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_move_that_is_late_is_in_force_once_it_is_on_record_and_never_if_it_is_not() {
        let root = tempfile::tempdir().expect("a directory");
        let mut engine = Arc::into_inner(open(root.path(), THREADS, false)).expect("alone");
        let ask = |key: &str| Ask {
            by: OPERATORS[0].to_owned(),
            why: String::new(),
            key: Some((key.to_owned(), "f".to_owned())),
        };
        let staged = |engine: &Engine| engine.act(NAME, verb(Ordered::Stage(1)), &ask("stage")).map(|moved| moved.verb);
        assert_eq!(staged(&engine).expect("staged"), "stage");
        let patience = |engine: &mut Engine, turn_ms, disk_ms| {
            let patience = Patience { turn: Duration::from_millis(turn_ms), disk: Duration::from_millis(disk_ms) };
            engine.ledger.as_mut().expect("a ledger").patience = patience;
        };
        patience(&mut engine, 20, 1);

        // On record after all.
        let go_on = stall(root.path());
        let promote = Ordered::Promote { force: true };
        is_late(&engine, promote, &ask("promote"));
        assert_eq!(engine.serving(None).expect("it serves").model.id().version, VERSIONS[0], "it is not known yet");
        assert!(!engine.standing(NAME).expect("it stands").journalled);
        for ordered in [promote, Ordered::Retire] {
            let other = engine.act(NAME, verb(ordered), &ask("other"));
            assert!(matches!(other, Err(Error::Late)), "by slots that may have passed: {other:?}");
        }
        go_on("");
        assert_eq!(settled(&engine), (VERSIONS[1].to_owned(), false));
        patience(&mut engine, 10_000, 10_000);
        assert!(engine.act(NAME, verb(promote), &ask("promote")).expect("it was made").repeated);

        // Not on record.
        patience(&mut engine, 20, 1);
        let go_on = stall(root.path());
        is_late(&engine, Ordered::RollBack, &ask("rollback"));
        go_on("CREATE TRIGGER sick BEFORE INSERT ON entry BEGIN SELECT RAISE(ABORT, 'the disk is full'); END");
        assert_eq!(settled(&engine), (VERSIONS[1].to_owned(), false));
        stall(root.path())("DROP TRIGGER sick");
        patience(&mut engine, 10_000, 10_000);
        let again = engine.act(NAME, verb(Ordered::RollBack), &ask("rollback")).expect("nothing was made of it");
        assert!(!again.repeated);

        // A broken challenger does not wait for it, and does not come back with it.
        engine.act(NAME, verb(Ordered::Start(1)), &ask("start")).expect("a rollout");
        patience(&mut engine, 20, 1);
        let go_on = stall(root.path());
        is_late(&engine, Ordered::Advance, &ask("advance"));
        let serving = engine.serving(None).expect("it serves");
        let trial = serving.trial.as_ref().expect("a trial");
        trial.started(Arm::Challenger);
        trial.failed(Arm::Challenger, Some(&crate::model::Error::NotAProbability), Who { ticket: 7, segment: None });
        engine.tick();
        assert!(engine.serving(None).expect("it serves").trial.is_none(), "at once");
        go_on("");
        assert_eq!(settled(&engine), (VERSIONS[0].to_owned(), false));
        let history = engine.history(NAME, i64::MAX, 100).expect("a history");
        let told: Vec<&str> = history.iter().rev().filter_map(|entry| entry.body["verb"].as_str()).collect();
        assert_eq!(told, ["begin", "stage", "promote", "rollback", "start", "advance", "rollback"]);
        engine.close();
    }
}
