#!/usr/bin/env bash
# What Mainstay is built of: `deny` checks licences, sources, bans and advisories of all crates (deny.toml), `sbom` writes them down as
# CycloneDX JSON. Each tool is built into target/tools on first use, in the version that stands here, with its lock file.
#
#     scripts/supply.sh deny      ADVISORIES=required makes an advisory database that is out of reach an error;
#                                 ADVISORY_DB=URL is a mirror of it, anything that git clones
#     scripts/supply.sh sbom
set -euo pipefail
cd "$(dirname "$0")/.."

DENY=0.20.2
CYCLONEDX=0.5.9
TOOLS=target/tools
SBOM=target/sbom/mainstay.cdx.json

tool() { # NAME VERSION: built, if it is not there
    if [[ "$("$TOOLS/bin/$1" "${1#cargo-}" --version 2>/dev/null)" != *"$2"* ]]; then
        echo "supply: building $1 $2 into $TOOLS" >&2
        CARGO_TARGET_DIR=$PWD/$TOOLS/build cargo install "$1" --version "=$2" --locked --quiet --root "$TOOLS"
        rm -rf "$TOOLS/build"
    fi
}

deny() {
    tool cargo-deny "$DENY"
    local check=("$TOOLS/bin/cargo-deny" --locked check --hide-inclusion-graph)
    "${check[@]}" licenses bans sources
    if [[ -n "${ADVISORY_DB:-}" ]]; then
        export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.$ADVISORY_DB.insteadOf" GIT_CONFIG_VALUE_0=https://github.com/RustSec/advisory-db
    fi
    if ! "$TOOLS/bin/cargo-deny" --locked fetch db 2>"$TOOLS/fetch.log"; then
        sed 's/^/supply:   /' "$TOOLS/fetch.log" >&2
        echo "supply: THE ADVISORY DATABASE IS OUT OF REACH: NO ADVISORY WAS CHECKED. Licences, bans and sources were. ADVISORY_DB=URL names a mirror." >&2
        [[ "${ADVISORIES:-}" != required ]]
        return
    fi
    # What was fetched just now, and nothing else.
    "$TOOLS/bin/cargo-deny" --locked --offline check --hide-inclusion-graph advisories
}

sbom() {
    tool cargo-cyclonedx "$CYCLONEDX"
    # What is built on another platform, or only to test, is not shipped.
    local target
    target=$(rustc -vV | sed -n 's/^host: //p')
    "$TOOLS/bin/cargo-cyclonedx" cyclonedx --format json --spec-version 1.5 --target "$target" --override-filename mainstay.cdx --quiet
    mkdir -p "$(dirname "$SBOM")"
    mv mainstay.cdx.json "$SBOM"
    python3 - "$SBOM" <<'PYTHON'
import json, sys
with open(sys.argv[1]) as file:
    bom = json.load(file)
parts = bom["components"]
unlicensed = [part["name"] for part in parts if not part.get("licenses")]
unhashed = [part["name"] for part in parts if part.get("purl", "").startswith("pkg:cargo") and not part.get("hashes")]
print(f"{sys.argv[1]}: {bom['bomFormat']} {bom['specVersion']}, {len(parts)} crates; without a licence: {unlicensed or 'none'}; without a hash: {unhashed or 'none'}")
if bom["bomFormat"] != "CycloneDX" or len(parts) < 50 or unlicensed or unhashed:
    sys.exit("supply: the bill of materials is not whole")
PYTHON
}

case "${1:-}" in
deny | sbom) "$1" ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
