#!/usr/bin/env bash
# Lints what a running server exposes: good and bad requests first, so that every family has a series, then
# `promtool check metrics` over /metrics. Any complaint fails.
#
#   scripts/metrics.sh
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

inside() {
  set -euo pipefail
  local customer=tests/data/customer.json json='content-type: application/json' metrics problems
  ask() { curl -sS -o /dev/null "$@"; }
  ask -H "$json" -d "@$customer" "$MAINSTAY_URL/v1/score"
  ask -H "$json" -d "[$(cat "$customer"), {}]" "$MAINSTAY_URL/v1/score/batch"
  ask -H 'content-type: application/x-ndjson' --data-binary "@$customer" "$MAINSTAY_URL/v1/score/batch"
  ask -H "$json" -d '{' "$MAINSTAY_URL/v1/score"
  ask -H "$json" -d '{}' "$MAINSTAY_URL/v1/models/nobody/score"
  ask -d x "$MAINSTAY_URL/v1/score"
  ask -X DELETE "$MAINSTAY_URL/v1/models"
  for path in /v1/models /livez /readyz /version /openapi.json /docs/ /nothing; do ask "$MAINSTAY_URL$path"; done

  metrics=$(curl -sSf "$MAINSTAY_ADMIN_URL/metrics")
  # promtool ends with 0 on some complaints: what it writes counts too.
  problems=$(scripts/promtool.sh promtool check metrics <<<"$metrics" 2>&1) && [ -z "$problems" ] || {
    printf 'metrics: promtool complains:\n%s\n' "$problems" >&2
    return 1
  }
  echo "metrics: $(grep -c '^# TYPE' <<<"$metrics") families, $(grep -vc '^#' <<<"$metrics") samples, promtool has no complaint"
}
export -f inside
python3 scripts/server.py bash -c inside
