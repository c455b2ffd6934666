//! Opening a bundle: everything that models/README.md promises is checked here, before ONNX Runtime sees a byte.
//! What the card says is judged in `domain::bundle::card`, the graph in `graph`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Error, graph};
use crate::domain::bundle::baseline::Baseline;
use crate::domain::bundle::card::Card;
use crate::domain::bundle::golden::Golden;
use crate::domain::bundle::schema::Schema;

const MANIFEST: &str = "manifest.json";
const GRAPH: &str = "model.onnx";
const BASELINE: &str = "baseline.json";
const GOLDEN: &str = "golden.json";

/// The files of a bundle, each with the most bytes that it may have.
const FILES: [(&str, u64); 4] = [(MANIFEST, 1 << 20), (GRAPH, 256 << 20), (BASELINE, 4 << 20), (GOLDEN, 4 << 20)];

/// A checked bundle, held in memory: the bytes that were hashed are the bytes that will be loaded.
#[derive(Debug)]
pub struct Bundle {
    /// The sha256 of the manifest, 64 hexadecimal digits.
    pub digest: String,
    /// The card.
    pub card: Card,
    /// The compiled feature dictionary.
    pub schema: Schema,
    /// Training-time histograms.
    pub baseline: Baseline,
    /// Golden rows.
    pub golden: Golden,
    /// The input vectors of the golden rows, row-major.
    pub golden_vectors: Vec<f32>,
    /// The ONNX graph.
    pub graph: Vec<u8>,
}

impl Bundle {
    /// Opens and checks the bundle in the directory `path`, whose last two names are the model's name and version.
    ///
    /// Errors: every problem of the first stage that has any (files; card; hashes; laws, graph and rows).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let broken = |problems: Vec<String>| Error::Bundle { path: path.to_owned(), problems };
        check_listing(path)?;

        let manifest = read(path, MANIFEST)?;
        let card: Card = parse(MANIFEST, &manifest).map_err(|problem| broken(vec![problem]))?;

        let [graph_bytes, baseline_bytes, golden_bytes] =
            [read(path, GRAPH)?, read(path, BASELINE)?, read(path, GOLDEN)?];
        let mut problems = Vec::new();
        for name in card.files.keys().filter(|name| *name == MANIFEST || FILES.iter().all(|(known, _)| known != name)) {
            problems.push(format!("files: \"{name}\" is not a file that a manifest vouches for"));
        }
        for (name, bytes) in [(GRAPH, &graph_bytes), (BASELINE, &baseline_bytes), (GOLDEN, &golden_bytes)] {
            match card.files.get(name) {
                None => problems.push(format!("files: \"{name}\" is missing")),
                Some(stated) if stated.bytes != bytes.len() as u64 => {
                    problems.push(format!("{name}: has {} bytes, the manifest says {}", bytes.len(), stated.bytes));
                }
                Some(stated) if stated.sha256 != sha256(bytes) => {
                    problems.push(format!(
                        "{name}: its sha256 is {}, the manifest says {}",
                        sha256(bytes),
                        stated.sha256
                    ));
                }
                Some(_) => {}
            }
        }
        if !problems.is_empty() {
            return Err(broken(problems));
        }

        for (name, stated) in [("version", &card.version), ("name", &card.name)]
            .into_iter()
            .zip(path_names(path))
            .filter_map(|((key, stated), directory)| {
                (*stated != directory).then_some((key, format!("\"{stated}\" is not the directory's \"{directory}\"")))
            })
        {
            problems.push(format!("{name}: {stated}"));
        }
        problems.extend(graph::problems(&graph_bytes, &card.graph, card.uplift.as_ref()));
        let baseline = parse::<Baseline>(BASELINE, &baseline_bytes).map_err(|problem| problems.push(problem)).ok();
        let golden = parse::<Golden>(GOLDEN, &golden_bytes).map_err(|problem| problems.push(problem)).ok();
        problems.extend(baseline.iter().flat_map(|baseline| baseline.problems(&card.features)));
        let schema = card.check().map_err(|broken| problems.extend(broken)).ok();
        let golden_vectors = match (&schema, &golden) {
            (Some(schema), Some(golden)) => {
                let uplifts = card.uplift.as_ref().map_or(0, |uplift| uplift.interventions.len());
                golden.vectors(schema, uplifts).map_err(|broken| problems.extend(broken)).ok()
            }
            _ => None,
        };
        match (schema, baseline, golden, golden_vectors) {
            (Some(schema), Some(baseline), Some(golden), Some(golden_vectors)) if problems.is_empty() => Ok(Self {
                digest: sha256(&manifest),
                card,
                schema,
                baseline,
                golden,
                golden_vectors,
                graph: graph_bytes,
            }),
            _ => Err(broken(problems)),
        }
    }
}

/// The directory holds the four files and nothing else.
fn check_listing(path: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(io)? {
        found.insert(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    let mut problems = Vec::new();
    for (name, _) in FILES {
        if !found.remove(name) {
            problems.push(format!("{name}: is missing"));
        } else if !fs::metadata(path.join(name)).map_err(io)?.is_file() {
            problems.push(format!("{name}: is not a regular file"));
        }
    }
    problems.extend(found.iter().map(|name| format!("{name}: does not belong into a bundle")));
    if problems.is_empty() { Ok(()) } else { Err(Error::Bundle { path: path.to_owned(), problems }) }
}

/// The last name of `path` and the one before it.
fn path_names(path: &Path) -> impl Iterator<Item = String> {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let names: Vec<String> = absolute.iter().rev().take(2).map(|name| name.to_string_lossy().into_owned()).collect();
    names.into_iter()
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = directory.join(name);
    let max = FILES.iter().find(|(known, _)| *known == name).map_or(0, |(_, max)| *max);
    let mut bytes = Vec::new();
    // One more than allowed, so that a file which grows while it is read is found too.
    let read = File::open(&path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 <= max => Ok(bytes),
        Ok(_) => Err(Error::Bundle {
            path: directory.to_owned(),
            problems: vec![format!("{name}: is larger than {max} bytes")],
        }),
        Err(source) => Err(Error::Io { path, source }),
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("{name}: {error}"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
