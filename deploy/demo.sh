#!/usr/bin/env bash
# The demonstration: on real hosts as root, on simulated ones otherwise or with DRIVER=sim.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=deploy/lab:deploy/demo
driver=${DRIVER:-real}
if [ "$driver" = real ] && [ "$(id -u)" != 0 ]; then
    echo "Not root: the hosts are simulated. As root this runs on real libvirt and QEMU."
    driver=sim
fi
case $driver in
    real) deploy/lab_free.sh; exec .venv/bin/python deploy/demo/real.py ;;
    sim) exec .venv/bin/python deploy/demo/simulated.py ;;
    *) echo "DRIVER is real or sim, not $driver" >&2; exit 2 ;;
esac
