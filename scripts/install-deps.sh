#!/usr/bin/env bash
# Installs what Tollgate needs besides Rust and a C compiler: cmake to build it, redis-server to test it and, with
# --bench, nginx, Varnish and wrk to measure it. Quick and quiet when nothing is missing; starts no service.
set -euo pipefail

usage() {
    echo "usage: $0 [--build | --test | --bench]   (default --test; each includes those before it)"
}

level=test
case "${1:-}" in
    --build) level=build ;;
    '' | --test) ;;
    --bench) level=bench ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

# Daemons live in /usr/sbin, which is not on every user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

missing=()
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

need cmake cmake
if [ "$level" != build ]; then
    need redis-server redis-server
fi
if [ "$level" = bench ]; then
    need nginx nginx-light
    need varnishd varnish
    need wrk wrk
fi

[ "${#missing[@]}" -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "$0: please install these first, with your system's package manager: ${missing[*]}" >&2
    exit 1
fi

sudo=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "$0: not root and no sudo here; as root run: apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    sudo=(sudo)
fi

echo "installing: ${missing[*]}"

# Packages of daemons start them on installation unless this file says no. One that is already there is the
# administrator's and stays as it is.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
placed=
cleanup() {
    [ -z "$placed" ] || "${sudo[@]}" rm -f "$policy"
    rm -f "$log"
}
trap cleanup EXIT
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    placed=yes
    "${sudo[@]}" chmod 755 "$policy"
fi

apt() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1
}
# Package lists may be absent (containers) or stale; fetch them only if the first try does not work.
if ! apt install --no-install-recommends "${missing[@]}"; then
    if ! { apt update && apt install --no-install-recommends "${missing[@]}"; }; then
        cat "$log" >&2
        echo "$0: could not install: ${missing[*]}" >&2
        exit 1
    fi
fi

# A fresh installation must not start at the next boot either: the tests and the benchmarks start their own.
if command -v systemctl >/dev/null 2>&1; then
    for package in "${missing[@]}"; do
        case "$package" in
            redis-server) "${sudo[@]}" systemctl disable --quiet redis-server >/dev/null 2>&1 || true ;;
            nginx-light) "${sudo[@]}" systemctl disable --quiet nginx >/dev/null 2>&1 || true ;;
            varnish) "${sudo[@]}" systemctl disable --quiet varnish varnishncsa >/dev/null 2>&1 || true ;;
        esac
    done
fi
