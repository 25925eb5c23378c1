"""Addresses for guests: one dnsmasq on the lab bridge, DHCP only.

Decision: guests of all hosts get their address from one server with one lease file, so a test finds a guest's address
by its MAC, and the address stays when the guest moves. No DNS.
"""

from pathlib import Path

from hostlerlab.cgroups import Cgroup
from hostlerlab.journal import Journal
from hostlerlab.network import BRIDGE
from hostlerlab.processes import Process
from hostlerlab.shell import wait_for
from hostlerlab.space import detach

FIRST = "10.91.7.100"
LAST = "10.91.7.199"
LEASE_TIME = "1h"  # longer than a lab run: a lease that expires in a test would look like a fault
START_TIMEOUT_S = 10.0


def start(folder: Path, cgroup: Cgroup, journal: Journal) -> Process:
    """Start dnsmasq in the root namespace; its lease file is `leases` in `folder`."""
    folder.mkdir(parents=True)
    leases = folder / "leases"
    command = [
        *(
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
            "--log-dhcp",
        ),
        *(f"--interface={BRIDGE}", "--bind-interfaces", "--except-interface=lo", "--log-facility=-"),
        *(
            f"--dhcp-range={FIRST},{LAST},{LEASE_TIME}",
            f"--dhcp-leasefile={leases}",
            "--dhcp-authoritative",
            "--no-ping",
        ),
        f"--pid-file={folder / 'dnsmasq.own.pid'}",
    ]
    process = detach("dnsmasq", [*cgroup.entering(), *command], folder / "dnsmasq.pid", folder / "dnsmasq.log", journal)
    wait_for("dnsmasq to be ready", lambda: leases.exists() or not process.alive(), START_TIMEOUT_S)
    if not process.alive():
        raise RuntimeError(f"dnsmasq died: {(folder / 'dnsmasq.log').read_text().strip()}")
    return process


def lease(folder: Path, mac: str) -> str | None:
    """The address given to `mac` (any case), or None so far."""
    for line in (folder / "leases").read_text().splitlines():
        fields = line.split()  # expiry, MAC, address, hostname, client id
        if len(fields) >= 3 and fields[1].lower() == mac.lower():
            return fields[2]
    return None
