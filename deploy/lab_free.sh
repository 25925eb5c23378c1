#!/usr/bin/env bash
# Takes down the lab that is up on this machine, if one is, wherever it was built: there can be one at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
owner=$(cat /run/hostlerlab 2>/dev/null || true)
[ -n "$owner" ] && [ -d "$owner" ] || exit 0
PYTHONPATH=deploy/lab .venv/bin/python -m hostlerlab --dir "$owner" down
