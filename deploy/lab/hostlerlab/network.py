"""The lab's wires: one bridge in the root namespace, one veth pair per host.

Decision: everything is one flat layer-2 segment, 10.91.7.0/24 on `hostlerbr0`. A host's end of the wire is put into a
bridge `br0` inside its namespace, which also carries its taps, so a guest keeps its address wherever it runs and the
root namespace can talk to guests. Nothing is routed or masqueraded: the lab has no way out.
"""

from pathlib import Path

from hostlerlab.journal import Journal, Record
from hostlerlab.shell import run

BRIDGE = "hostlerbr0"
GATEWAY = "10.91.7.1"
PREFIX_LENGTH = 24
NETNS_DIR = Path("/run/netns")


def netns_name(host: str) -> str:
    return f"hostler-{host}"


def veth_name(host: str) -> str:
    """The root namespace's end of a host's wire (at most 15 characters: the kernel's limit)."""
    return f"hostler-v{host}"


def prepare_netns_dir(journal: Journal) -> None:
    """Record the mount that the first `ip netns add` of a machine makes, if it is us who cause it."""
    mounts = Path("/proc/self/mounts").read_text()
    if f" {NETNS_DIR} " not in mounts:
        if not NETNS_DIR.exists():
            journal.add(Record("dir", str(NETNS_DIR)))
        journal.add(Record("mount", str(NETNS_DIR)))


def create_bridge(journal: Journal) -> None:
    """The root namespace's bridge with the gateway address."""
    journal.add(Record("link", BRIDGE))
    run(["ip", "link", "add", BRIDGE, "address", "02:91:07:00:00:01", "type", "bridge", "forward_delay", "0"])
    run(["ip", "address", "add", f"{GATEWAY}/{PREFIX_LENGTH}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])


def create_netns(journal: Journal, host: str, address: str, guest_bridge: str | None) -> None:
    """A namespace with a wire to the lab bridge. With `guest_bridge` the wire goes into that bridge, else it has the address."""
    netns, outer = netns_name(host), veth_name(host)
    journal.add(Record("netns", netns))
    run(["ip", "netns", "add", netns])
    journal.add(Record("link", outer))
    run(["ip", "link", "add", outer, "type", "veth", "peer", "name", "uplink0", "netns", netns])
    run(["ip", "link", "set", outer, "master", BRIDGE, "up"])
    inside = ["ip", "-n", netns]
    run([*inside, "link", "set", "lo", "up"])
    device = "uplink0"
    if guest_bridge is not None:
        device = guest_bridge
        mac = "02:91:07:00:01:" + f"{int(address.rsplit('.', 1)[1]):02x}"
        # Its own address: a bridge otherwise takes the lowest of its ports', which changes when a guest starts.
        run([*inside, "link", "add", device, "address", mac, "type", "bridge", "forward_delay", "0"])
        run([*inside, "link", "set", "uplink0", "master", device])
    run([*inside, "link", "set", "uplink0", "up"])
    run([*inside, "address", "add", f"{address}/{PREFIX_LENGTH}", "dev", device])
    run([*inside, "link", "set", device, "up"])
