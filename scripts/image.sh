#!/usr/bin/env bash
# Builds the container image and proves it by running it: configuration, readiness, one decision, health, a clean stop.
#
#   scripts/image.sh [options]
#     --engine NAME   docker, podman or buildah; without it the first of these that works here
#     --local-base    make the two base images on this machine (Debian, as root: debootstrap and this machine's Rust
#                     toolchain) instead of pulling them; they are kept and used again
#     --storage DIR   keep images in DIR instead of the engine's own place (podman and buildah)
#     --tag NAME      name of the image; mainstay:<version of Cargo.toml>, unless given
#     --port N        port on 127.0.0.1 to serve on meanwhile; 8080, unless given
#
#   RUST_IMAGE, DEBIAN_IMAGE   other names of the base images, such as a registry of your own or a digest
#
# Figures and findings go to standard output, the builder's own words to standard error. Exit code 0: all of it was seen.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

die() {
  echo "image: $*" >&2
  exit 1
}
say() { printf '%-12s %s\n' "$1" "$2"; }

# --- options ---------------------------------------------------------------------------------------------------------
engine='' storage='' local_base='' tag='' port=8080
while [ $# -gt 0 ]; do
  case $1 in
    --local-base) local_base=yes; shift; continue ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
    --engine | --storage | --tag | --port) [ $# -ge 2 ] || die "$1 wants a value" ;;
    *) die "unknown option $1; scripts/image.sh --help lists them" ;;
  esac
  case $1 in
    --engine) engine=$2 ;;
    --storage) storage=$2 ;;
    --tag) tag=$2 ;;
    --port) port=$2 ;;
  esac
  shift 2
done
# below the last one: the next one is the admin listener's where the container shares this machine's network
if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port >= 65535)); then
  die "--port $port is not a port below 65535"
fi

customer=$root/tests/data/customer.json
[ -f "$customer" ] || die "tests/data/customer.json is missing: it is the customer that the image is asked about"
command -v curl >/dev/null || die "curl is missing: install it (Debian: apt-get install curl) and run this again"
# Whoever listens there already would answer in the image's place.
if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  die "port $port on 127.0.0.1 is taken: stop what listens there or name another with --port"
fi

version=$(sed -n '/^\[package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
revision=$(git --no-optional-locks -C "$root" describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)
tag=${tag:-mainstay:$version}
rust_image=${RUST_IMAGE:-$(sed -n 's/^ARG RUST_IMAGE=//p' "$root/Dockerfile")}
debian_image=${DEBIAN_IMAGE:-$(sed -n 's/^ARG DEBIAN_IMAGE=//p' "$root/Dockerfile")}

# --- what is cleaned up ----------------------------------------------------------------------------------------------
tmp=$(mktemp -d)
container=''
clean() {
  local code=$?
  trap - EXIT
  if [ -n "$container" ]; then
    [ "$code" -eq 0 ] || { echo "image: the last words of the container:" && container_log | tail -n 40; } >&2
    container_remove >/dev/null 2>&1 || true
  fi
  rm -rf -- "$tmp"
  exit "$code"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Milliseconds; whole seconds where bash is too old to know more.
now_ms() {
  if [ -n "${EPOCHREALTIME:-}" ]; then
    local t=${EPOCHREALTIME/[.,]/}
    echo $((t / 1000))
  else
    echo $(($(date +%s) * 1000))
  fi
}

# --- the engine ------------------------------------------------------------------------------------------------------
engine_answers() {
  case $1 in
    docker) docker info >/dev/null 2>&1 ;;
    podman) podman info >/dev/null 2>&1 ;;
    buildah) buildah info >/dev/null 2>&1 ;;
    *) die "--engine $1 is none of docker, podman, buildah" ;;
  esac
}
if [ -n "$engine" ]; then
  engine_answers "$engine" || die "$engine does not answer: see '$engine info'"
else
  for candidate in docker podman buildah; do
    if engine_answers "$candidate"; then
      engine=$candidate
      break
    fi
  done
  [ -n "$engine" ] || die "no container engine answers: start docker, or install podman or buildah (Debian: apt-get install podman)"
fi
E=("$engine")
if [ -n "$storage" ]; then
  [ "$engine" != docker ] || die "--storage is not for docker: its daemon knows one place only"
  mkdir -p -- "$storage" || die "cannot make the directory $storage"
  storage=$(cd -- "$storage" && pwd)
  E+=(--root "$storage/root" --runroot "$storage/run")
fi

# HEALTHCHECK is Docker's; the OCI format has no place for it and drops it.
case $engine in
  docker) build=(build) ;;
  podman) build=(build --format docker --layers) ;;
  buildah) build=(build --format docker --layers --isolation chroot --network host) ;;
esac

has_image() { "${E[@]}" inspect --type image "$1" >/dev/null 2>&1; }

# An engine that is itself confined cannot always confine a build step: a step that does nothing tells.
choose_build_isolation() {
  [ "$engine" = podman ] || return 0
  mkdir -p "$tmp/empty"
  printf 'FROM %s\nRUN true\n' "$1" >"$tmp/empty/Dockerfile"
  local flags
  for flags in '' '--isolation chroot --network host'; do
    # shellcheck disable=SC2086  # words on purpose
    if "${E[@]}" "${build[@]}" $flags --layers=false --iidfile "$tmp/iid" "$tmp/empty" >"$tmp/log" 2>&1; then
      "${E[@]}" rmi "$(cat "$tmp/iid")" >/dev/null 2>&1 || true
      # shellcheck disable=SC2206
      build+=($flags)
      return 0
    fi
    ! grep -qE 'short-name|initializing source' "$tmp/log" ||
      die "$engine cannot get $1: name other copies in RUST_IMAGE and DEBIAN_IMAGE, in full, or use --local-base ($(tail -n 1 "$tmp/log"))"
  done
  die "$engine cannot run a build step on $1: $(tail -n 1 "$tmp/log")"
}

# --- base images of our own ------------------------------------------------------------------------------------------
import_image() { # TAR NAME
  if [ "$engine" = buildah ]; then
    local c
    c=$("${E[@]}" from scratch)
    "${E[@]}" add --quiet "$c" "$1" / >/dev/null
    "${E[@]}" config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$c"
    "${E[@]}" commit --quiet --rm "$c" "$2" >/dev/null
  else
    "${E[@]}" import --change 'CMD ["bash"]' "$1" "$2" >/dev/null
  fi
}

make_debian_base() { # NAME
  [ "$(id -u)" -eq 0 ] || die "--local-base needs root (debootstrap makes device files and owners)"
  command -v debootstrap >/dev/null || die "debootstrap is missing: install it (apt-get install debootstrap) and run this again"
  # Where this machine gets its own packages from, if that is the same release; else what debootstrap knows.
  local mirror
  # shellcheck disable=SC2016  # the dollars are apt's
  mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(CREATED_BY)' 2>/dev/null |
    awk '$2 == "bookworm" && $3 == "Packages" { print $1; exit }') || mirror=''
  echo "image: making a Debian base with debootstrap" >&2
  debootstrap --variant=minbase bookworm "$tmp/rootfs" ${mirror:+"$mirror"} >"$tmp/log" 2>&1 ||
    die "debootstrap failed: $(tail -n 1 "$tmp/log")"
  # As in the real slim image: apt keeps no caches, and manuals and translations are left out (licences are not).
  printf '%s\n' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' \
    'APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' \
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' >"$tmp/rootfs/etc/apt/apt.conf.d/docker-clean"
  tar -C "$tmp/rootfs" --one-file-system --numeric-owner \
    --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' \
    --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
    -cf "$tmp/rootfs.tar" .
  import_image "$tmp/rootfs.tar" "$1"
  rm -rf -- "$tmp/rootfs" "$tmp/rootfs.tar"
}

make_rust_base() { # NAME DEBIAN_NAME
  echo "image: making a Rust base from the toolchain in $toolchain" >&2
  # This machine's certificates go along: behind a proxy that opens TLS, nothing else can fetch. The final image is made
  # from the other base and does not get them.
  mkdir -p "$tmp/certificates"
  local bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  [ ! -f "$bundle" ] || cp -- "$bundle" "$tmp/certificates/ca-certificates.crt"
  cat >"$tmp/Dockerfile.packages" <<DOCKERFILE
FROM $2
RUN apt-get update -qq \\
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev make ca-certificates \\
 && rm -rf /var/lib/apt/lists/*
COPY . /etc/ssl/certs/
DOCKERFILE
  # Two builds because there are two contexts: the certificates, and the toolchain where it stands.
  cat >"$tmp/Dockerfile.rust" <<DOCKERFILE
FROM $1-packages
COPY bin /usr/local/rust/bin
COPY lib /usr/local/rust/lib
ENV CARGO_HOME=/usr/local/cargo \\
    PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
DOCKERFILE
  "${E[@]}" "${build[@]}" -f "$tmp/Dockerfile.packages" -t "$1-packages" "$tmp/certificates" >&2 || die "the Rust base could not be built"
  "${E[@]}" "${build[@]}" -f "$tmp/Dockerfile.rust" -t "$1" "$toolchain" >&2 || die "the Rust base could not be built"
}

if [ -n "$local_base" ]; then
  [ -z "${RUST_IMAGE:-}${DEBIAN_IMAGE:-}" ] || die "--local-base makes the base images itself: unset RUST_IMAGE and DEBIAN_IMAGE"
  wanted=${rust_image#*:} wanted=${wanted%%-*}
  rustc=$(rustc --version 2>/dev/null) || die "rustc is missing: --local-base takes this machine's toolchain; install Rust $wanted with rustup"
  rustc=${rustc#rustc } rustc=${rustc%% *}
  case $rustc in
    "$wanted" | "$wanted".*) ;;
    *) die "the image wants Rust $wanted and this machine has $rustc: install that one (rustup toolchain install $wanted)" ;;
  esac
  toolchain=$(rustc --print sysroot)
  # A toolchain of the distribution shares /usr with everything else.
  case $toolchain in
    /usr | /usr/local) die "the Rust toolchain in $toolchain cannot be copied by itself: install one with rustup" ;;
  esac
  debian_image=mainstay-base-debian:bookworm
  rust_image=mainstay-base-rust:$rustc
  has_image "$debian_image" || make_debian_base "$debian_image"
fi
choose_build_isolation "$debian_image"
if [ -n "$local_base" ]; then
  has_image "$rust_image" || make_rust_base "$rust_image" "$debian_image"
fi

# --- build -----------------------------------------------------------------------------------------------------------
began=$(now_ms)
"${E[@]}" "${build[@]}" -t "$tag" -f "$root/Dockerfile" \
  --build-arg "RUST_IMAGE=$rust_image" --build-arg "DEBIAN_IMAGE=$debian_image" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$root" >&2 ||
  die "the image could not be built: $engine said why above; where base images cannot be pulled, --local-base makes them"
say image "$tag, built by $engine in $((($(now_ms) - began) / 1000)) s"

# --- what it says of itself ------------------------------------------------------------------------------------------
image_config() { # KEY: user | entrypoint | command | healthcheck | signal | label NAME
  local config='.Config' health='.Config.Healthcheck'
  case $engine in
    podman) health='.HealthCheck' ;;
    buildah) config='.Docker.Config' health='.Docker.Config.Healthcheck' ;;
  esac
  local format
  case $1 in
    user) format="{{$config.User}}" ;;
    entrypoint) format="{{$config.Entrypoint}}" ;;
    command) format="{{$config.Cmd}}" ;;
    signal) format="{{$config.StopSignal}}" ;;
    healthcheck) format="{{with $health}}{{.Test}}{{end}}" ;;
    label) format="{{index $config.Labels \"$2\"}}" ;;
  esac
  "${E[@]}" inspect --type image --format "$format" "$tag"
}
expect() { # WHAT GOT WANTED
  [ "$2" = "$3" ] || die "$1 of the image is '$2', expected '$3'"
}
expect 'the user' "$(image_config user)" 10001:10001
expect 'the entry point' "$(image_config entrypoint)" '[mainstay]'
expect 'the command' "$(image_config command)" '[serve]'
expect 'the stop signal' "$(image_config signal)" SIGTERM
expect 'the health check' "$(image_config healthcheck)" '[CMD mainstay health]'
label=org.opencontainers.image
expect 'the title label' "$(image_config label $label.title)" Mainstay
expect 'the licences label' "$(image_config label $label.licenses)" Apache-2.0
expect 'the version label' "$(image_config label $label.version)" "$version"
expect 'the revision label' "$(image_config label $label.revision)" "$revision"
[ -n "$(image_config label $label.description)" ] || die "the image has no description label"
say config "user 10001:10001, health check, stop signal and labels as expected"

image_bytes() {
  case $engine in
    buildah) # knows the size only in words
      "${E[@]}" images --format '{{.Size}}' "$tag" | head -n 1 ;;
    *) "${E[@]}" inspect --type image --format '{{.Size}}' "$tag" |
      awk '{ printf "%.1f MB\n", $1 / 1e6 }' ;;
  esac
}
say 'image size' "$(image_bytes)"

# --- run -------------------------------------------------------------------------------------------------------------
# What the engine refuses where it stands is left out, one flag at a time, and the rest is reported.
run=() confinement=()
host_network=(--network host -e "MAINSTAY__HTTP__LISTEN=127.0.0.1:$port" -e "MAINSTAY__ADMIN__LISTEN=127.0.0.1:$((port + 1))")
can_run() { "${E[@]}" run --rm --entrypoint /bin/true "$@" "$tag" >"$tmp/log" 2>&1; }
choose_run_flags() {
  local runtime limits network flag
  local runtimes=('') limit_sets=('')
  if [ "$engine" = podman ]; then
    # A health check of podman's is a systemd timer; where there is no systemd the container would not start. The check
    # itself is run below.
    run+=(--no-healthcheck)
    ! command -v runc >/dev/null || runtimes+=(runc)
    # podman raises its limits to what it was built with, which not every machine lets it do
    limit_sets+=('--ulimit nofile=4096:4096 --ulimit nproc=4096:4096')
  fi
  local plain=("${E[@]}") common=(${run[@]+"${run[@]}"})
  for network in publish host; do
    for runtime in "${runtimes[@]}"; do
      for limits in "${limit_sets[@]}"; do
        E=("${plain[@]}" ${runtime:+--runtime "$runtime"})
        # shellcheck disable=SC2206  # words on purpose
        run=(${common[@]+"${common[@]}"} $limits)
        if [ $network = publish ]; then
          run+=(-p "127.0.0.1:$port:8080")
        else
          run+=("${host_network[@]}")
        fi
        can_run "${run[@]}" || continue
        for flag in --read-only --cap-drop=all --security-opt=no-new-privileges; do
          if can_run "${run[@]}" ${confinement[@]+"${confinement[@]}"} "$flag"; then
            confinement+=("$flag")
          fi
        done
        say confinement "${confinement[*]:-none that this engine allows} (network: $network${runtime:+, --runtime $runtime}${limits:+, $limits})"
        return 0
      done
    done
  done
  die "$engine cannot run the image: $(tail -n 1 "$tmp/log")"
}

container_start() {
  if [ "$engine" = buildah ]; then
    container=$("${E[@]}" from --pull-never "$tag")
    # takes no entry point from the image: it was read above
    "${E[@]}" run --isolation chroot "${host_network[@]}" "$container" -- mainstay serve >"$tmp/container.log" 2>&1 &
    run_pid=$!
  else
    container=$("${E[@]}" run -d "${run[@]}" ${confinement[@]+"${confinement[@]}"} "$tag") || die "$engine cannot start the image"
  fi
}
container_runs() {
  if [ "$engine" = buildah ]; then
    kill -0 "$run_pid" 2>/dev/null
  else
    [ "$("${E[@]}" inspect --format '{{.State.Running}}' "$container")" = true ]
  fi
}
container_health() {
  if [ "$engine" = buildah ]; then
    "${E[@]}" run --isolation chroot "${host_network[@]}" "$container" -- mainstay health
  else
    "${E[@]}" exec "$container" mainstay health
  fi
}
# buildah's own processes between this one and the server do not pass a signal on: the server is the last in the line.
buildah_signal() {
  local process=$run_pid child
  while child=$(ps -o pid= --ppid "$process" | head -n 1) && [ -n "$child" ]; do process=${child// /}; done
  kill "-$1" "$process"
}
container_stop() { # sets exit_code
  if [ "$engine" = buildah ]; then
    buildah_signal TERM
    exit_code=0
    wait "$run_pid" || exit_code=$?
  else
    # sends the image's stop signal, and kills (137) what has not ended by then
    "${E[@]}" stop -t 30 "$container" >/dev/null
    exit_code=$("${E[@]}" inspect --format '{{.State.ExitCode}}' "$container")
  fi
}
container_log() {
  if [ "$engine" = buildah ]; then
    cat "$tmp/container.log"
  else
    "${E[@]}" logs "$container" 2>&1
  fi
}
container_remove() {
  if [ "$engine" = buildah ]; then
    buildah_signal KILL || true
    wait "$run_pid" || true
    "${E[@]}" rm "$container"
  else
    "${E[@]}" rm --force --volumes "$container"
  fi
}

if [ "$engine" = buildah ]; then
  say confinement 'chroot only: buildah builds, it is no place to run a service'
else
  choose_run_flags
fi

# A proxy of the environment has no business on the loopback device.
ask() { curl --noproxy '*' --silent --max-time 5 "$@"; }
url=http://127.0.0.1:$port

began=$(now_ms)
container_start
until ask --fail --output /dev/null "$url/readyz"; do
  container_runs || die "the container ended before it was ready"
  (($(now_ms) - began < 60000)) || die "the container was not ready after 60 s: $(ask "$url/readyz" || echo 'no answer')"
  sleep 0.05
done
say 'start time' "$(($(now_ms) - began)) ms from start to ready"

began=$(now_ms)
status=$(ask --output "$tmp/answer" --write-out '%{http_code}' -H 'content-type: application/json' --data-binary "@$customer" "$url/v1/score") ||
  die "POST /v1/score got no answer"
took=$(($(now_ms) - began))
answer=$(tr '\n' ' ' <"$tmp/answer")
[ "$status" = 200 ] || die "POST /v1/score answered $status: $answer"
has() { grep -Eq "\"$1\"[[:space:]]*:[[:space:]]*$2" <<<"$answer" || die "the decision has no $1: $answer"; }
has decision_id '"[^"]+"'
has score '(0|1|0\.[0-9]+|1\.0+|[0-9.]+e-[0-9]+)[],}[:space:]]'
has tier '"[^"]+"'
say decision "200 in $took ms with decision_id, score and tier"

container_health >"$tmp/log" 2>&1 || die "mainstay health failed in the running container: $(tail -n 1 "$tmp/log")"
say health 'mainstay health: exit code 0'

began=$(now_ms)
container_stop
[ "$exit_code" = 0 ] || die "the container ended with exit code $exit_code after SIGTERM, expected 0"
say stop "exit code 0, $(($(now_ms) - began)) ms after SIGTERM"

say proved "$tag"
