//! `make fuzz`: libFuzzer on one of the targets, which `MAINSTAY_FUZZ` names. What is held to be true is in `targets`; that every file of
//! the corpus still is, `tests/corpus.rs` checks with the ordinary tests.

#![no_main]

mod mutate;
mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

static TARGET: LazyLock<&'static targets::Target> = LazyLock::new(|| {
    let name = std::env::var("MAINSTAY_FUZZ").unwrap_or_default();
    let known = || targets::ALL.map(|target| target.name).join(", ");
    targets::ALL
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("MAINSTAY_FUZZ is one of {}", known()))
});

fuzz_target!(|input: &[u8]| (TARGET.run)(input));

// Half of the mutants of a text differ by words of it; bytes alone hardly ever come by a legal document.
fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
    match TARGET.is_text && seed.is_multiple_of(2) {
        true => mutate::words(data, size, max, seed),
        false => libfuzzer_sys::fuzzer_mutate(data, size, max),
    }
});
