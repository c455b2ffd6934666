#!/usr/bin/env bash
# Cargo's RUSTC_WORKSPACE_WRAPPER for `make fuzz`: compiles this crate, and it alone, for coverage-guided fuzzing. The flags are those of
# cargo-fuzz without its sanitizers, which need a nightly compiler: they look for wrong uses of memory, and this crate forbids `unsafe`.
# Dependencies are compiled as for the tests, so none is built again; what is generic in them is compiled here, and counted.
if [[ " $* " == *" --crate-name "* && " $* " != *" --crate-name ___ "* ]]; then
    set -- "$@" -Copt-level=1 -Ccodegen-units=16 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
fi
exec "$@"
