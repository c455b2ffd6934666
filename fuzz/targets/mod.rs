//! What is fuzzed, and what has to be true of it whatever comes: more than that nothing panics. Each target reads its input by itself, so
//! a file of the corpus means the same to libFuzzer and to `tests/corpus.rs`.

mod edge;
mod experiment;
mod forest;
mod graph;
mod keys;
mod ledger;
mod manifest;
mod policy;
mod request;
mod service;

/// One way into the service for what others wrote.
pub(crate) struct Target {
    /// Its name, and that of its corpus.
    pub(crate) name: &'static str,
    /// Whether its input is a text.
    #[allow(dead_code, reason = "for the mutator alone")]
    pub(crate) is_text: bool,
    /// Panics where a law is broken.
    pub(crate) run: fn(&[u8]),
}

/// All of them.
pub(crate) const ALL: [Target; 9] = [
    Target { name: "request", is_text: true, run: request::run },
    Target { name: "edge", is_text: true, run: edge::run },
    Target { name: "policy", is_text: true, run: policy::run },
    Target { name: "manifest", is_text: true, run: manifest::run },
    Target { name: "experiment", is_text: true, run: experiment::run },
    Target { name: "keys", is_text: true, run: keys::run },
    Target { name: "graph", is_text: false, run: graph::run },
    Target { name: "forest", is_text: false, run: forest::run },
    Target { name: "ledger", is_text: false, run: ledger::run },
];

/// Where files are kept in memory, and how many bytes have to be free there: a container often has 64 MB, which is soon full.
const MEMORY: &str = "/dev/shm";
const MEMORY_MIN: u64 = 512 << 20;

/// A directory that is gone when it is dropped: in memory, where there is room for it.
fn directory() -> tempfile::TempDir {
    let has_room = rustix::fs::statvfs(MEMORY).is_ok_and(|found| found.f_bavail * found.f_frsize > MEMORY_MIN);
    let place = if has_room { MEMORY.into() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a directory")
}

/// What is read from the front of an input, so that bytes decide on structure; zeros behind its end.
pub(crate) struct Bytes<'i>(&'i [u8]);

impl<'i> Bytes<'i> {
    pub(crate) fn new(input: &'i [u8]) -> Self {
        Self(input)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn f32(&mut self) -> f32 {
        f32::from_le_bytes(self.take())
    }

    fn take<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        let (front, rest) = self.0.split_at(COUNT.min(self.0.len()));
        bytes[..front.len()].copy_from_slice(front);
        self.0 = rest;
        bytes
    }
}
