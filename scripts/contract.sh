#!/usr/bin/env bash
# Fuzzes a live server by its own contract with Schemathesis, in every phase and with a fixed seed: nothing may be found.
# Before that, both contracts (the committed one and the live one) are checked to be OpenAPI.
#
#   scripts/contract.sh [OPTIONS of `schemathesis run`]
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv-contract
requirements=tests/contract/requirements.txt
if ! cmp -s -- "$requirements" "$venv/done"; then
  { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"; } || {
    echo "contract: cannot install $requirements: check python3 (Debian: apt-get install python3-venv), the network and pip's index settings, and run this again" >&2
    exit 69
  }
  cp -- "$requirements" "$venv/done"
fi

inside() {
  set -euo pipefail
  local live=target/openapi.json
  curl -sSf -o "$live" "$MAINSTAY_URL/openapi.json"
  "$venv/bin/openapi-spec-validator" "$live" openapi/mainstay.yaml
  "$venv/bin/schemathesis" --config-file tests/contract/schemathesis.toml run "$live" --url "$MAINSTAY_URL" "$@"
}
export -f inside
# Hypothesis keeps files of its own in the working directory otherwise.
export venv HYPOTHESIS_STORAGE_DIRECTORY=target/hypothesis
# Else whatever has the header x-mainstay-arm would be refused before it is looked at.
export MAINSTAY__ROLLOUTS__ARM_HEADER=true
python3 scripts/server.py bash -c 'inside "$@"' inside "$@"
