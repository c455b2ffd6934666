#!/usr/bin/env bash
# Puts the ONNX Runtime shared library that Mainstay is pinned to into a directory.
#
#   scripts/fetch-onnxruntime.sh [DEST]        DEST: target/onnxruntime of this repository, unless given
#
# DEST then holds libonnxruntime.so (a link), the library itself, its LICENSE and ThirdPartyNotices.txt, and
# onnxruntime.sha256, by which a second run sees that nothing is left to do. Standard output is the library's path.
set -euo pipefail

version=1.31.1

die() {
  echo "fetch-onnxruntime: $*" >&2
  exit 1
}

# Messages of other programs are matched and quoted here: keep them in one language.
export LC_ALL=C

[ $# -le 1 ] || die "usage: scripts/fetch-onnxruntime.sh [DEST]"
case ${1:-} in
  -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  -*) die "unknown option $1; usage: scripts/fetch-onnxruntime.sh [DEST]" ;;
esac
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
dest=${1:-$root/target/onnxruntime}
[ "$dest" = / ] || dest=${dest%/}

# --- which wheel -----------------------------------------------------------------------------------------------------
# Pinned: what a package index serves under this version may not change unseen.
system=$(uname -s) arch=$(uname -m)
case $system/$arch in
  Linux/x86_64) wheel_sha256=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f ;;
  Linux/aarch64) wheel_sha256=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3 ;;
  *) die "no library is pinned for $system/$arch: use Linux on x86_64 or aarch64, such as a container (scripts/image.sh)" ;;
esac

library=libonnxruntime.so.$version
marker=onnxruntime.sha256
marker_head="# onnxruntime $version $arch wheel $wheel_sha256"

# --- already there? --------------------------------------------------------------------------------------------------
# Every byte is compared, not just the name: a process that maps a truncated library dies without a message.
complete() {
  [ -f "$dest/$marker" ] &&
    [ "$(head -n 1 "$dest/$marker")" = "$marker_head" ] &&
    [ "$dest/libonnxruntime.so" -ef "$dest/$library" ] &&
    [ "$dest/libonnxruntime.so.1" -ef "$dest/$library" ] &&
    (cd -- "$dest" && sha256sum --check --strict --status "$marker" 2>/dev/null)
}

if complete; then
  echo "$dest/libonnxruntime.so"
  exit 0
fi

# --- what is needed to fetch it --------------------------------------------------------------------------------------
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
if ! [[ $libc =~ ^glibc\ ([0-9]+)\.([0-9]+) ]] || ((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2] < 2028)); then
  die "the library needs glibc 2.28 or newer, here is ${libc:-another C library}: use a newer distribution or a container (scripts/image.sh)"
fi
command -v python3 >/dev/null || die "python3 is missing: install it (Debian: apt-get install python3 python3-pip) and run this again"
python3 -m pip --version >/dev/null 2>&1 || die "pip is missing for $(command -v python3): install it (Debian: apt-get install python3-pip) and run this again"

# --- fetch into a directory beside the files, so that each one arrives by a rename, whole or not at all -----------------
mkdir -p -- "$dest" 2>/dev/null || die "cannot make the directory $dest: choose another DEST or mend its permissions"
# what a killed run left behind; a run that is still at work is younger
find "$dest" -maxdepth 1 -name '.fetch.*' -mmin +60 -exec rm -rf {} + 2>/dev/null || true
stage=$(mktemp -d "$dest/.fetch.XXXXXX" 2>/dev/null) || die "cannot write to $dest: choose another DEST or mend its permissions"
trap 'rm -rf -- "$stage"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$stage/wheel" "$stage/files"

# The explicit tags make the answer independent of the Python that happens to run pip.
# What goes wrong is kept in a variable: on a full disk a log would stay empty. TMPDIR: what pip leaves goes with the stage.
if ! log=$(TMPDIR=$stage python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary=:all: \
  --implementation cp --python-version 3.11 --abi cp311 \
  --platform "manylinux_2_28_$arch" --platform "manylinux_2_27_$arch" --platform "manylinux2014_$arch" \
  --dest "$stage/wheel" "onnxruntime==$version" 2>&1); then
  # The first of these is the cause; what follows are its consequences.
  cause=$(grep -m 1 -oE '(Failed to establish|certificate verify failed|Cannot connect to proxy|No space left).*' <<<"$log" ||
    grep -m 1 -E '^ERROR: ' <<<"$log" || tail -n 1 <<<"$log")
  cause=${cause#ERROR: }
  die "pip could not download onnxruntime $version (${cause:0:200}): check the network and pip's index settings (pip config list) and run this again"
fi

wheels=("$stage"/wheel/onnxruntime-*.whl)
got=$(sha256sum -- "${wheels[0]}" 2>/dev/null | cut -d ' ' -f 1)
[ "$got" = "$wheel_sha256" ] ||
  die "the wheel of onnxruntime $version for $arch is not the pinned one (sha256 ${got:-none}, pinned $wheel_sha256): nothing was installed; check pip's index settings (pip config list)"

# Python's own zip reader: no unzip needed
unpack='
import os, shutil, sys, zipfile

wheel, to, library = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in ("capi/" + library, "LICENSE", "ThirdPartyNotices.txt"):
        with archive.open("onnxruntime/" + name) as source, open(os.path.join(to, os.path.basename(name)), "wb") as target:
            shutil.copyfileobj(source, target)
'
log=$(python3 -c "$unpack" "${wheels[0]}" "$stage/files" "$library" 2>&1) ||
  die "cannot unpack the wheel into $dest ($(tail -n 1 <<<"$log")): free some disk space and run this again"

# --- install ---------------------------------------------------------------------------------------------------------
# File by file, the marker last: DEST may hold other things, a process that has the old library mapped keeps it, and two
# runs at once install the same bytes, whoever is last.
install_files() {
  cd -- "$stage/files" || return
  chmod 0644 -- * || return
  {
    echo "$marker_head"
    sha256sum -- "$library" LICENSE ThirdPartyNotices.txt
  } >"$marker" || return
  ln -s "$library" libonnxruntime.so.1 && ln -s "$library" libonnxruntime.so || return
  local file
  for file in LICENSE ThirdPartyNotices.txt "$library" libonnxruntime.so.1 libonnxruntime.so "$marker"; do
    mv -fT -- "$file" "$dest_absolute/$file" || return
  done
}
dest_absolute=$(cd -- "$dest" && pwd)
log=$(install_files 2>&1) || die "cannot install into $dest ($(tail -n 1 <<<"$log")): choose another DEST or mend its permissions"
complete || die "what was installed in $dest does not stay as it was written: check the disk and run this again"
echo "$dest/libonnxruntime.so"
