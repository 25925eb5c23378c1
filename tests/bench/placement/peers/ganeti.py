"""Ganeti's htools as a peer: the cluster in the two formats they read, one allocation by `hail`, and how many more fit by `hspace`.

Ganeti starts hail for each request and hands it the whole cluster, so the time of an answer is that of the whole process; the file is written before.
Only what the programs read is written, which makes the files smaller than Ganeti's own. Disks are on shared storage (`rbd`), as a VM needs that is
to be restarted elsewhere; the templates `plain` and `drbd` would be another comparison. Limits on sizes and ratios are opened wide, so that what
refuses is a host that is full. `checked`: with Ganeti's own guarantee that the VMs of any one host can restart on the others.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.placement.peers.cluster import Answer, Cluster, Host, Shape, free, whole_cpus
from tests.bench.placement.peers.programs import PeerFailed, found, run

INSTALL = "apt-get install ganeti-htools"
FOLDERS = ("/usr/lib/ganeti/iallocators",)
"""Where Ganeti, and nobody's PATH, looks for hail."""

TEMPLATE = "rbd"
GROUP, GROUP_ID = "default", "00000000-0000-4000-8000-000000000000"
NEW = "hostler-bench-new"
UNCHECKED = "--no-capacity-checks"
LARGEST = 2**30
"""Of anything: no limit."""
SPINDLE_RATIO = 1000.0
NEVER_GIVEN_MIB = 1
"""Ganeti never gives out a node's last MiB: with one more on each, it fills a host as exactly as the others do."""
SMALLEST_MIB = 64
"""What hspace takes from a size's memory when it tries a smaller one."""


@dataclass(frozen=True, slots=True)
class Space:
    """How many more of one shape fit. `why`: what the next one lacked, in hspace's word; `cpu_s`: of its process."""

    fits: int
    why: str
    took_s: float
    cpu_s: float


# ---- what they read


def request_text(cluster: Cluster, shape: Shape) -> str:
    """hail's request: the cluster and one instance to allocate. Raises ValueError for a cluster that cannot be, or has parts of CPUs."""
    return json.dumps(
        {
            "cluster_tags": [],
            "enabled_hypervisors": [],
            "nodegroups": {GROUP_ID: {"name": GROUP, "alloc_policy": "preferred", "networks": [], "tags": [], "ipolicy": _policy()}},
            "nodes": _nodes(cluster),
            "instances": {one.id: {"nodes": [one.host_id], **_instance(one.shape)} for one in cluster.instances},
            "request": {"type": "allocate", "name": NEW, "required_nodes": 1, **_instance(shape)},
        }
    )


def _nodes(cluster: Cluster) -> dict[str, Any]:
    left = free(cluster)
    return {
        host.id: {
            "group": GROUP_ID,
            "offline": False,
            "drained": False,
            "vm_capable": True,
            "ndparams": {"exclusive_storage": False, "spindle_count": 1},
            "total_spindles": 1,
            "free_spindles": 1,
            "total_cpus": whole_cpus(host.cpu_milli),
            "reserved_cpus": 0,
            "total_memory": host.memory_mib + NEVER_GIVEN_MIB,
            "free_memory": left[host.id].memory_mib + NEVER_GIVEN_MIB,
            "reserved_memory": 0,
            "total_disk": host.disk_mib,
            "free_disk": left[host.id].disk_mib,
        }
        for host in cluster.hosts
    }


def _instance(shape: Shape) -> dict[str, Any]:
    return {
        "vcpus": whole_cpus(shape.cpu_milli),
        "memory": shape.memory_mib,
        "disks": [{"size": shape.disk_mib}],
        "disk_space_total": shape.disk_mib,
        "disk_template": TEMPLATE,
        "spindle_use": 1,
        "nics": [],
        "tags": [],
    }


def _policy() -> dict[str, Any]:
    return {
        "std": _specification(1),
        "minmax": [{"min": _specification(0), "max": _specification(LARGEST)}],
        "disk-templates": [TEMPLATE],
        "vcpu-ratio": 1.0,
        "spindle-ratio": SPINDLE_RATIO,
    }


def _specification(number: int) -> dict[str, int]:
    return dict.fromkeys(("memory-size", "cpu-count", "disk-size", "disk-count", "nic-count", "spindle-use"), number)


def cluster_text(cluster: Cluster) -> str:
    """The text format of hspace and hbal: groups, nodes, instances, tags and policies, with an empty line between. Raises ValueError."""
    for name in (*(host.id for host in cluster.hosts), *(one.id for one in cluster.instances)):
        if not name or any(letter in "|,\n" for letter in name):
            raise ValueError(f"{name!r} cannot be a name in this format")
    left = free(cluster)
    nodes = [_node_line(host, left[host.id]) for host in cluster.hosts]
    instances = [
        f"{one.id}|{one.shape.memory_mib}|{one.shape.disk_mib}|{whole_cpus(one.shape.cpu_milli)}|running|Y|{one.host_id}||{TEMPLATE}||1"
        for one in cluster.instances
    ]
    limits = f"1,1,1,1,1,1|0,0,0,0,0,0;{','.join([str(LARGEST)] * 6)}|{TEMPLATE}|1.0|{SPINDLE_RATIO}"
    sections = [[f"{GROUP}|{GROUP_ID}|preferred||"], nodes, instances, [], [f"|{limits}", f"{GROUP}|{limits}"]]
    return "\n".join("".join(line + "\n" for line in section) for section in sections)


def _node_line(host: Host, left: Shape) -> str:
    """The CPUs of the node's own system are said, although they are none: one is taken for granted where nothing is said."""
    memory = f"{host.memory_mib + NEVER_GIVEN_MIB}|0|{left.memory_mib + NEVER_GIVEN_MIB}"
    own_cpus = 0
    return f"{host.id}|{memory}|{host.disk_mib}|{left.disk_mib}|{whole_cpus(host.cpu_milli)}|N|{GROUP_ID}|1||N|0|{own_cpus}"


# ---- what they answer


def hail(request: Path, *, checked: bool, timeout_s: float, program: Path | None = None) -> Answer:
    """To a file with a request. Raises PeerMissing, PeerFailed, TimeoutError."""
    argv = [str(found("hail", program, INSTALL, FOLDERS)), *([] if checked else [UNCHECKED]), str(request)]
    ran = run(argv, timeout_s)
    host_id, why = answer_of(ran.stdout)
    return Answer(host_id, ran.took_s, why, cpu_s=ran.cpu_s)


def answer_of(stdout: str) -> tuple[str | None, str]:
    """(the host, "") or (None, why). Raises PeerFailed for anything else: a request that hail did not understand is no refusal."""
    try:
        told = json.loads(stdout)
        success, why, hosts = told["success"], told["info"], told["result"]
    except (ValueError, TypeError, KeyError) as error:
        raise PeerFailed(f"hail answered {stdout[:200]!r}") from error
    if success and len(hosts) == 1:
        return hosts[0], ""
    if not success and REFUSED in why:
        return None, why
    raise PeerFailed(f"hail answered: {why}")


REFUSED = "No valid allocation solutions"
"""What hail says when nothing fits; a request that it cannot read fails in other words."""


def hspace(data: Path, cluster: Cluster, shape: Shape, *, checked: bool, timeout_s: float, program: Path | None = None) -> Space:
    """How many more `shape` fit into the cluster that `data` describes. Raises PeerMissing, PeerFailed, TimeoutError.

    hspace first fills the cluster with ever smaller sizes, whether one wants it or not: it is given one that takes all the CPUs of a host at once, so
    that this takes about as many steps as there are hosts.
    """
    most_cpus = max(whole_cpus(left.cpu_milli) for left in free(cluster).values())
    sizes = ["--standard-alloc", f"{shape.disk_mib},{shape.memory_mib},{whole_cpus(shape.cpu_milli)}"]
    sizes += ["--tiered-alloc", f"0,{SMALLEST_MIB},{most_cpus}"]
    argv = [str(found("hspace", program, INSTALL)), "-t", str(data), "--machine-readable", "--disk-template", TEMPLATE, *sizes]
    ran = run([*argv, *([] if checked else [UNCHECKED])], timeout_s)
    fits, why = space_of(ran.stdout)
    return Space(fits, why, ran.took_s, ran.cpu_s)


def space_of(stdout: str) -> tuple[int, str]:
    """(how many fit, what the next one lacked). Raises PeerFailed for an output without its closing mark."""
    told = dict(line.split("=", 1) for line in stdout.splitlines() if "=" in line)
    if told.get("HTS_OK") != "1":
        raise PeerFailed(f"hspace broke off after {stdout[-200:]!r}")
    return int(told["HTS_ALLOC_INSTANCES"]), told["HTS_ALLOC_FAIL_REASON"]
