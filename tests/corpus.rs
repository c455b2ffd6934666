//! Every file of `fuzz/corpus` through its target: what fuzzing has found once stays found, without a fuzzer. A file has a place in it
//! because it takes a way through the code that no other one takes, or because something was wrong with it.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::catch_unwind;

/// Bounds of a corpus: files, and bytes of all of them.
const FILES_MAX: usize = 40;
const BYTES_MAX: usize = 128 << 10;

/// One after the other: what a target sets up it has for itself.
#[test]
fn every_law_holds_for_every_file() {
    let mut broken = Vec::new();
    for target in targets::ALL {
        let mut files: Vec<_> = fs::read_dir(format!("fuzz/corpus/{}", target.name))
            .expect("a corpus for each target")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        let inputs: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).expect("a file")).collect();
        let bytes: usize = inputs.iter().map(Vec::len).sum();
        assert!((1..=FILES_MAX).contains(&files.len()), "{}: {} files", target.name, files.len());
        assert!(bytes <= BYTES_MAX, "{}: {bytes} bytes", target.name);
        (target.run)(b"");
        for (path, input) in files.iter().zip(&inputs) {
            if catch_unwind(|| (target.run)(input)).is_err() {
                broken.push(path.display().to_string());
            }
        }
    }
    assert!(broken.is_empty(), "a law is broken, see above, by {}", broken.join(", "));
}
