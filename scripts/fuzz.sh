#!/usr/bin/env bash
# Fuzzes what others write (fuzz/targets), one target after the other, with libFuzzer on the pinned stable compiler: no nightly, no cargo-fuzz.
# Only this crate is compiled for it (fuzz/rustc.sh); its dependencies are those of the tests.
#
#     scripts/fuzz.sh [TARGET …]     MINUTES=10 for each, or a fraction; without a TARGET all of them
#     FIXED=1 scripts/fuzz.sh        a fixed seed and number of runs, from the corpus alone: about a minute in all. What threads do still differs a little
#
# What takes a new way through the code is kept in target/fuzz/TARGET and begins the next run; an input that breaks a law lies in
# target/fuzz/broken. Put it into fuzz/corpus/TARGET with the mend: `cargo test --test corpus` runs it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."

MINUTES=${MINUTES:-10}
TARGETS=("$@")
[[ $# -gt 0 ]] || TARGETS=(request edge policy manifest experiment keys graph forest ledger)
command -v c++ >/dev/null || { echo "fuzz: a C++ compiler is missing, for libFuzzer: install g++ (Debian: apt-get install g++)" >&2; exit 1; }
export MAINSTAY__RUNTIME__LIBRARY=${MAINSTAY__RUNTIME__LIBRARY:-$PWD/target/onnxruntime/libonnxruntime.so}

RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/rustc.sh cargo build --quiet --locked --example fuzz --features fuzz
BINARY=${CARGO_TARGET_DIR:-target}/debug/examples/fuzz
SECONDS_EACH=$(awk -v minutes="$MINUTES" 'BEGIN { print int(minutes * 60) }')

length() { # the longest input that is worth trying
    case $1 in
    request | edge | experiment | keys) echo 4096 ;;
    manifest) echo 16384 ;;
    forest) echo 2048 ;;
    ledger) echo 36 ;;
    *) echo 8192 ;;
    esac
}

runs() { # of a fixed run: what takes some four to fifteen seconds, by how busy the machine is
    case $1 in
    request | manifest) echo 80000 ;;
    edge) echo 40000 ;;
    policy) echo 190000 ;;
    experiment) echo 370000 ;;
    keys) echo 75000 ;;
    graph) echo 160000 ;;
    forest) echo 120000 ;;
    ledger) echo 560 ;;
    *) echo 1000 ;;
    esac
}

broken=()
mkdir -p target/fuzz/broken
for target in "${TARGETS[@]}"; do
    kept=target/fuzz/$target
    log=target/fuzz/$target.log
    # An input may take 20 seconds and half a gigabyte: more than its size lets expect by far.
    bounds=(-max_total_time="$SECONDS_EACH" -timeout=20)
    if [[ -n ${FIXED:-} ]]; then
        kept=target/fuzz/fixed/$target
        rm -rf "$kept"
        # How busy the machine is must not tell.
        bounds=(-seed=1 -runs="$(runs "$target")" -timeout=120)
    fi
    mkdir -p "$kept"
    if MAINSTAY_FUZZ=$target "$BINARY" "${bounds[@]}" -max_len="$(length "$target")" \
        -rss_limit_mb=512 -print_final_stats=1 -artifact_prefix="target/fuzz/broken/$target-" \
        "$kept" "fuzz/corpus/$target" >"$log" 2>&1; then
        awk -v target="$target" '/INITED/ { first = $4 } /DONE/ { last = $4; corpus = $8; rate = $12 }
            /number_of_executed_units/ { runs = $2 }
            END { printf "fuzz: %-10s %10d runs, %s edges (the corpus: %s)\n", target, runs, last, first }' "$log"
    else
        broken+=("$target")
        grep -m1 -A1 "panicked at\|ERROR: libFuzzer" "$log" >&2 || tail -3 "$log" >&2
        echo "fuzz: $target: a law is broken: see $log, and the input in target/fuzz/broken" >&2
    fi
done
[[ ${#broken[@]} -eq 0 ]]
