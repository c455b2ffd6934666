#!/usr/bin/env bash
# Runs a program of Prometheus or Alertmanager, which is fetched on first use where it is not installed (Debian).
#
#   scripts/promtool.sh promtool|prometheus|alertmanager|amtool ARGUMENTS...
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
program=${1:?a program}
shift
tools=$root/target/prometheus
package=prometheus
case $program in alertmanager | amtool) package=prometheus-alertmanager ;; esac
# Debian's name of the daemon.
named=$program
[ "$program" = alertmanager ] && named=prometheus-alertmanager
export PATH=$tools:$PATH
if ! command -v "$named" >/dev/null && command -v apt-get >/dev/null; then
  # Only the programs are taken out of the package: installed, it would also start a service that listens everywhere.
  stage=$(mktemp -d)
  trap 'rm -rf -- "$stage"' EXIT
  mkdir -p "$tools"
  (cd -- "$stage" && { apt-get download "$package" || { apt-get update && apt-get download "$package"; }; } &&
    dpkg-deb -x "$package"_*.deb . && cp -- usr/bin/* "$tools/") >/dev/null 2>&1 || true
  rm -rf -- "$stage"
fi
command -v "$named" >/dev/null || {
  echo "promtool: $program is missing: install it (Debian: apt-get install --no-install-recommends $package) and run this again" >&2
  exit 69
}
exec "$named" "$@"
