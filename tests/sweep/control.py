"""The control of the lost Finish: plain `virsh migrate` with the same fault, on the same kind of pool, must yield a second copy.

If it does not, the fault does not bite or the observer is blind, and that Hostler's runs are green proves nothing. Nothing of the product takes part:
a domain of its own, libvirt's peer-to-peer migration over relays (`hostlerlab.relay`), no pause at the destination, no owner anywhere.
"""

import json
import subprocess
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

from hostlerlab.cluster import LabCluster
from hostlerlab.faults import Drop, PacketLoss
from hostlerlab.handoff_by_hand import DATA_PORT, DATA_SOCKET, RPC_PORT, RPC_SOCKET, prepare_sockets, relays
from hostlerlab.hosts import Host
from hostlerlab.shell import wait_for
from tests.sweep import lockless, observer
from tests.sweep.strikes import connections

WAIT_S = 60.0
AFTER_SAMPLES = 30
"""What the two copies do is watched for 3 s after libvirt's verdict: its keepalive gives up after 8 s, and then it lets the source run on."""


def played(
    cluster: LabCluster, source: Host, destination: Host, brick: Path, folder: Path, image: str
) -> tuple[str, list[observer.Breach]]:
    """(the proof that the fault hit, what the observer saw). Blocks; leaves no domain behind."""
    vm_uid = str(uuid.uuid4())
    disk = lockless.PATH / "volumes" / f"{vm_uid}.raw"
    source.run(["qemu-img", "convert", "-O", "raw", str(lockless.PATH / "images" / f"{image}.qcow2"), str(disk)])
    prepare_sockets(source, destination)
    try:
        source.virsh("create", "/dev/stdin", stdin=domain_xml(vm_uid, disk))
        with relays(source, destination):
            return _migrated(cluster, source, destination, vm_uid, brick / "lockless" / "volumes" / disk.name, folder)
    finally:
        for host in (source, destination):
            host.run(["virsh", "-q", "-c", "qemu:///system", "destroy", vm_uid], check=False)
        source.run(["rm", "-f", str(disk)])


def _migrated(
    cluster: LabCluster, source: Host, destination: Host, vm_uid: str, image: Path, folder: Path
) -> tuple[str, list[observer.Breach]]:
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "samples.jsonl"
    out.unlink(missing_ok=True)
    hosts = {host.name: host.space.holder().pid for host in (source, destination)}
    config = observer.Config("", vm_uid, hosts, list(cluster.etcd.client_urls), str(image), "", str(out))
    (folder / "observer.json").write_text(json.dumps(asdict(config)))

    def samples() -> list[observer.Sample]:
        return observer.load(out) if out.exists() else []

    def migrates() -> bool:
        return len(connections(source, DATA_PORT)) > 0

    with subprocess.Popen([sys.executable, str(Path(observer.__file__)), str(folder / "observer.json")]) as watching:
        try:
            wait_for("the guest to count", lambda: bool(samples()) and samples()[-1].counter > 18, WAIT_S)
            # As slow as Hostler's runs of the same fault, or the memory is through before its connection is seen.
            to = [f"qemu+unix:///system?socket={RPC_SOCKET}", "--migrateuri", f"unix://{DATA_SOCKET}", "--bandwidth", "1"]
            with source.popen(["virsh", "-q", "-c", "qemu:///system", "migrate", "--live", "--p2p", vm_uid, *to]) as migration:
                wait_for("the memory to flow", migrates, WAIT_S)
                with PacketLoss(source.space, Drop("in", peer=destination.address, remote_port=RPC_PORT)) as loss:
                    migration.wait(WAIT_S)
                    enough = len(samples()) + AFTER_SAMPLES
                    wait_for("samples after libvirt's verdict", lambda: len(samples()) >= enough, WAIT_S)
                    return f"{loss.packets()} packets dropped, virsh exit {migration.returncode}", observer.breaches(samples())
        finally:
            watching.terminate()


def domain_xml(vm_uid: str, disk: Path) -> str:
    """Small, emulated, its one disk raw and shareable."""
    return f"""<domain type='qemu'>
 <name>{vm_uid}</name><uuid>{vm_uid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
 <os><type arch='x86_64' machine='q35'>hvm</type></os>
 <features><acpi/></features>
 <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
 <devices>
  <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='stop'/>
   <source file='{disk}'/><target dev='vda' bus='virtio'/><shareable/></disk>
  <memballoon model='none'/>
 </devices></domain>"""
