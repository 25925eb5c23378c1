"""An independent look at a lab cluster: are etcd, the agents' own files and libvirt of every host equal?

Uses etcdctl, virsh and the files on disk, and imports nothing of Hostler's. Checks, for every VM in etcd: that exactly one host runs it, the one
the owner record names, under that epoch (in the domain's metadata); that exactly the owner's agent keeps its definition; that it has one claim.
For every node: that the ledger is the sum of its claims, and not above what is allocatable. For libvirt: that no host has a domain of ours that
etcd does not know.

    check_cluster.py ETCD_ENDPOINTS HOST=PID=STATE_DIR ...     (PID: any process inside the host; STATE_DIR: its agent's, seen from outside)
"""

import base64
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

STATE = "/hostler/state/"
TIMEOUT_S = 30


def run(*argv: str) -> str:
    """A program's output; its failure is ours."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout


def store(endpoints: str) -> dict[str, dict[str, Any]]:
    """Every record under STATE, by its key."""
    raw = run("env", "ETCDCTL_API=3", "etcdctl", "--endpoints", endpoints, "get", "--prefix", STATE, "-w", "json")
    pairs = [(base64.b64decode(kv["key"]).decode(), base64.b64decode(kv.get("value", ""))) for kv in json.loads(raw).get("kvs", [])]
    return {key.removeprefix(STATE): json.loads(value) for key, value in pairs if value}


def domains(pid: str) -> dict[str, tuple[str, int]]:
    """uid -> (state, epoch in its metadata) of every domain on one host."""
    virsh = ("nsenter", "--target", pid, "--mount", "--net", "virsh", "-q", "-c", "qemu:///system")
    found = {}
    for uid in run(*virsh, "list", "--all", "--name").split():
        epoch = re.search(r"epoch[^0-9]{1,3}(\d+)", run(*virsh, "dumpxml", uid))
        found[uid] = (run(*virsh, "domstate", uid).strip(), int(epoch[1]) if epoch else -1)
    return found


def definitions(state_dir: str) -> dict[str, int]:
    """uid -> epoch of every definition that an agent keeps."""
    files = [json.loads(path.read_text()) for path in Path(state_dir, "vms").glob("[!.]*")]
    return {one["spec"]["vm_uid"]: one["epoch"] for one in files}


def main() -> int:
    endpoints, hosts = sys.argv[1], [argument.split("=", 2) for argument in sys.argv[2:]]
    records = store(endpoints)
    running = {name: domains(pid) for name, pid, _ in hosts}
    kept = {name: definitions(state_dir) for name, _, state_dir in hosts}
    vms = {key: record for key, record in records.items() if key.startswith("vm/")}
    claims = {key: record for key, record in records.items() if key.startswith("claim/")}
    wrong: list[str] = []
    for vm in vms.values():
        owner = vm["owner"]
        where = [name for name, found in running.items() if vm["uid"] in found]
        expected = [owner["node_id"]] if owner["state"] == "RUNNING" else []
        if where != expected:
            wrong.append(f"{vm['vm_id']}: etcd says {owner['state']} on {owner['node_id']}, domains are on {where}")
        for name in where:
            state, epoch = running[name][vm["uid"]]
            if state != "running" or epoch != owner["epoch"]:
                wrong.append(f"{vm['vm_id']} on {name}: {state} under epoch {epoch}, etcd says epoch {owner['epoch']}")
        keepers = {name: found[vm["uid"]] for name, found in kept.items() if vm["uid"] in found}
        # A VM that was moved while it was off is defined by its new owner under the epoch before: the next start brings its own.
        epochs = {owner["epoch"], owner["epoch"] - 1} if owner["state"] == "STOPPED" else {owner["epoch"]}
        if set(keepers) != {owner["node_id"]} or not set(keepers.values()) <= epochs:
            wrong.append(f"{vm['vm_id']}: defined by {keepers}, owned by {owner['node_id']} under epoch {owner['epoch']}")
        if [key for key in claims if key.endswith(f"/{vm['vm_id']}")] != [f"claim/{owner['node_id']}/{vm['vm_id']}"]:
            wrong.append(f"{vm['vm_id']}: its claims are not one on its owner")
    uids = {vm["uid"] for vm in vms.values()}
    for name, found in running.items():
        wrong += [f"{name} has a domain {uid} that etcd does not know" for uid in found if uid not in uids]
    for name, _, _ in hosts:
        ledger = records[f"ledger/{name}"]
        sums: Counter[str] = Counter()
        for key, claim in claims.items():
            if key.startswith(f"claim/{name}/"):
                sums.update(claim["charged"])
        if dict(sums) != ledger["claimed"]:
            wrong.append(f"ledger of {name}: {ledger['claimed']}, its claims sum to {dict(sums)}")
        wrong += [f"{name} is oversubscribed in {k}" for k, v in ledger["claimed"].items() if v > ledger["allocatable"].get(k, 0)]
    for line in wrong:
        print(f"WRONG: {line}")
    if not wrong:
        print(f"{len(vms)} VMs, {len(claims)} claims, {len(hosts)} hosts: etcd, agents and libvirt are equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
