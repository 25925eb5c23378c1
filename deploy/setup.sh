#!/usr/bin/env bash
# Installs what is missing, and nothing that is there: Debian packages (as root), the virtual environment, the project itself.
# Safe to repeat; a second call takes a fraction of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

packages() {
    command -v apt-get >/dev/null || return 0
    local wanted missing
    wanted=$(grep -v '^#' deploy/apt-packages.txt)
    # shellcheck disable=SC2086
    missing=$(comm -23 <(tr ' ' '\n' <<<"$wanted" | sort) <(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' $wanted 2>/dev/null | awk '$1=="ii"{print $2}' | sort))
    [ -z "$missing" ] && return 0
    if [ "$(id -u)" != 0 ]; then
        echo "setup: not root, so these packages are not installed: $(tr '\n' ' ' <<<"$missing")" >&2
        return 0
    fi
    echo "setup: installing $(wc -w <<<"$missing") packages"
    mkdir -p build
    # No service of theirs is wanted to start by itself: the lab starts its own.
    local policy=/usr/sbin/policy-rc.d made=0
    if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made=1; fi
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing; } >build/apt.log 2>&1 \
        || { tail -n 20 build/apt.log >&2; [ $made = 0 ] || rm -f "$policy"; exit 1; }
    [ $made = 0 ] || rm -f "$policy"
}

environment() {
    local stamp=.venv/hostler-setup digest libvirt=
    pkg-config --exists libvirt 2>/dev/null && libvirt=libvirt,
    digest=$(cat pyproject.toml client/python/pyproject.toml "$0" | sha256sum | cut -c1-16)-$libvirt
    [ "$(cat "$stamp" 2>/dev/null || true)" = "$digest" ] && return 0
    local python=python3
    $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed" >&2; exit 1; }
    echo "setup: making the virtual environment"
    mkdir -p build
    { [ -x .venv/bin/python ] || $python -m venv .venv
      .venv/bin/pip install --disable-pip-version-check -q -e 'client/python[cli,server]' -e ".[${libvirt}dev]"; } >build/pip.log 2>&1 \
        || { tail -n 20 build/pip.log >&2; exit 1; }
    echo "$digest" >"$stamp"
}

packages
environment
