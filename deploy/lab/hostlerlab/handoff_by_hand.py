"""One guest moved from host to host by hand, with the handoff protocol's steps and nothing of the product.

`python -m hostlerlab.handoff_by_hand [--runs 5] [--local-disk]`. Decision: the riskiest path of the product is kept here as a script
that talks to libvirt, etcd, the kernel and the image itself, so that a surprise in the product can be told from a
surprise of libvirt. Steps H0-H7 of mode P: arrive paused, freeze the source, look, commit the owner in etcd, kill the
source, read the owner again, resume. With `--local-disk` the image is in the host's own pool and is copied along over a third
relay; the two files are compared while the source is frozen. Each step is printed with the milliseconds since the migration started.
"""

import argparse
import base64
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from hostlerlab.etcd import EtcdCluster
from hostlerlab.guest import build as guest_build
from hostlerlab.guest import layout
from hostlerlab.hosts import LOCAL_POOL, QEMU_USER, SHARED_POOL, Host
from hostlerlab.kvm import domain_type
from hostlerlab.lab import Lab, default_specs
from hostlerlab.shell import wait_for

F_OFD_GETLK = 36
LOCK_BYTES = (100, 101, 103, 201, 203)
EVENT_TIMEOUT_S = 60.0
RPC_PORT = 7301
DATA_PORT = 7302
DISK_PORT = 7303
SOCKET_DIR = Path("/run/hostler/migrate")
RPC_SOCKET = SOCKET_DIR / "rpc.sock"
DATA_SOCKET = SOCKET_DIR / "data.sock"
DISK_SOCKET = SOCKET_DIR / "disk.sock"
NAMESPACE = "https://hostler.dev/xmlns/lab/1"
FLAGS = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_PAUSED | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
HELD, FREE = "held", "free"
NO_ANSWER = "no answer"
STATE_DEADLINE_S = 0.03

STATES = {
    v: k.removeprefix("VIR_DOMAIN_")
    for k, v in vars(libvirt).items()
    if k in {f"VIR_DOMAIN_{s}" for s in ("NOSTATE", "RUNNING", "BLOCKED", "PAUSED", "SHUTDOWN", "SHUTOFF", "CRASHED", "PMSUSPENDED")}
}
EVENTS = {
    getattr(libvirt, f"VIR_DOMAIN_EVENT_{n}"): n
    for n in ("DEFINED", "UNDEFINED", "STARTED", "SUSPENDED", "RESUMED", "STOPPED", "SHUTDOWN", "PMSUSPENDED", "CRASHED")
}


def constant_names(prefix: str) -> dict[int, str]:
    return {v: k.removeprefix(prefix) for k, v in vars(libvirt).items() if k.startswith(prefix) and isinstance(v, int)}


@dataclass
class Timeline:
    """Prints what happens with milliseconds since `start`, from any thread, and remembers the events."""

    start: float = 0.0
    lock: threading.Condition = field(default_factory=threading.Condition)
    events: list[tuple[float, str, str]] = field(default_factory=list)

    def say(self, who: str, text: str) -> float:
        now = time.monotonic()
        print(f"{(now - self.start) * 1000:9.1f} ms  {who:<6} {text}", flush=True)
        return now

    def event(self, host: str, event: str) -> None:
        with self.lock:
            self.events.append((self.say(host, f"event {event}"), host, event))
            self.lock.notify_all()

    def wait_event(self, host: str, prefix: str) -> float:
        """Wait for an event on `host` that starts with `prefix`; its time. Raises `TimeoutError`."""

        def seen() -> list[float]:
            return [at for at, where, what in self.events if where == host and what.startswith(prefix)]

        with self.lock:
            if not self.lock.wait_for(seen, EVENT_TIMEOUT_S):
                raise TimeoutError(f"no event {prefix} on {host} in {EVENT_TIMEOUT_S:g} s")
            return seen()[0]


class Etcd:
    """Get and compare-and-put through etcd's own JSON gateway."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, key: str) -> tuple[dict[str, Any], int]:
        """Linearizable read: the value and its mod_revision."""
        found = self._post("range", {"key": _b64(key)})["kvs"][0]
        return json.loads(base64.b64decode(found["value"])), int(found["mod_revision"])

    def put_if(self, key: str, revision: int, value: dict[str, Any]) -> bool:
        """Put when the key's mod_revision is still `revision` (0: does not exist)."""
        compare = {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        put = {"request_put": {"key": _b64(key), "value": _b64(json.dumps(value))}}
        return bool(self._post("txn", {"compare": [compare], "success": [put]}).get("succeeded", False))

    def _post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._url}/v3/kv/{what}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=5) as reply:
            parsed: dict[str, Any] = json.load(reply)
            return parsed


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def domain_xml(name: str, kind: str, image: Path, vm_uuid: str, linux: bool) -> str:
    memory = 256 if linux else 16
    return f"""<domain type='{kind}'>
 <name>{name}</name><uuid>{vm_uuid}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
 <metadata><h:vm xmlns:h='{NAMESPACE}' epoch='1' operation=''/></metadata>
 <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
 <features><acpi/></features>
 <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
 <on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
 <devices>
  <emulator>/usr/bin/qemu-system-x86_64</emulator>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' error_policy='stop'/>
   <source file='{image}'/><target dev='vda' bus='{"virtio" if linux else "ide"}'/></disk>
  <interface type='bridge'><source bridge='br0'/><mac address='52:54:00:91:07:01'/><model type='virtio'/></interface>
  <serial type='pty'/><memballoon model='virtio'/>
 </devices></domain>"""


def with_record(xml: str, epoch: int, operation: str) -> str:
    """The same domain with another epoch and operation in its metadata."""
    tree = ET.fromstring(xml)
    record = tree.find(f"metadata/{{{NAMESPACE}}}vm")
    assert record is not None
    record.set("epoch", str(epoch))
    record.set("operation", operation)
    return ET.tostring(tree, encoding="unicode")


def locks(pid: int, image: Path) -> dict[int, str]:
    """Which of QEMU's lock bytes of the image are held by anybody, asked from inside a host's mount namespace.

    `pid` is a process of that host other than QEMU: a stopped QEMU must not be in the way of the question.
    """
    answers = {}
    fd = os.open(f"/proc/{pid}/root{image}", os.O_RDWR)
    try:
        for byte in LOCK_BYTES:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(fd, F_OFD_GETLK, asked))
            answers[byte] = FREE if answer[0] == fcntl.F_UNLCK else HELD
    finally:
        os.close(fd)
    return answers


def show_locks(found: dict[int, str]) -> str:
    return " ".join(f"{byte}:{state}" for byte, state in found.items())


def read_counter(host: Host, image: Path, linux: bool) -> tuple[int, tuple[str, ...]]:
    """The guest's last counter as it is on the disk, and what is wrong with its records."""
    offset, size = (layout.AREA_OFFSET, layout.AREA_BYTES) if linux else (layout.BOOTSECTOR_RECORD_OFFSET, layout.SECTOR_BYTES)
    out = f"/run/hostler/ring-{uuid.uuid4().hex}"
    skip = offset // size
    # `qemu-img dd` counts the skipped blocks too. Past the page cache: a FUSE client's is not told what other hosts write.
    blocks = [f"bs={size}", f"skip={skip}", f"count={skip + 1}"]
    direct = f"driver=qcow2,cache.direct=on,file.driver=file,file.cache.direct=on,file.filename={image}"
    host.run(["qemu-img", "dd", "-U", "--image-opts", "-O", "raw", *blocks, f"if={direct}", f"of={out}"])
    raw = host.outside(out)
    data = raw.read_bytes()[-size:]
    raw.unlink()
    if linux:
        ring = layout.parse_ring(data)
        return (ring[-1].counter if ring else 0), layout.ring_faults(ring)
    record = layout.parse_bootsector_record(data)
    return (record.counter, (f"{record.foreign} foreign",) if record.foreign else ()) if record else (0, ())


@contextmanager
def relays(src: Host, dst: Host) -> Iterator[None]:
    """Three tunnels, each in two halves: the destination's libvirtd socket, the migration socket, and the one for disks."""
    python = [sys.executable, "-m", "hostlerlab.relay"]
    package = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(package)}
    halves = [
        (dst, f"tcp:{dst.address}:{RPC_PORT}", "unix:/run/libvirt/libvirt-sock"),
        (dst, f"tcp:{dst.address}:{DATA_PORT}", f"unix:{DATA_SOCKET}"),
        (src, f"unix:{RPC_SOCKET}", f"tcp:{dst.address}:{RPC_PORT}"),
        (src, f"unix:{DATA_SOCKET}", f"tcp:{dst.address}:{DATA_PORT}"),
        (dst, f"tcp:{dst.address}:{DISK_PORT}", f"unix:{DISK_SOCKET}"),
        (src, f"unix:{DISK_SOCKET}", f"tcp:{dst.address}:{DISK_PORT}"),
    ]
    running = []
    try:
        for host, listen, connect in halves:
            half = host.popen([*python, listen, connect], env=env, stdout=subprocess.PIPE)
            running.append(half)
            assert half.stdout is not None
            if half.stdout.readline() != b"ready\n":
                raise RuntimeError(f"relay {listen} did not start")
        src.run(["chown", QEMU_USER, str(DISK_SOCKET)])  # QEMU itself connects to it; to the others libvirt does
        yield
    finally:
        for half in running:
            half.terminate()
            half.wait()
            if half.stdout is not None:
                half.stdout.close()


def prepare_sockets(src: Host, dst: Host) -> None:
    """The least that works: on the destination QEMU itself binds the data socket, so it must own a directory to do so."""
    for host in (src, dst):
        host.run(["sh", "-c", f"rm -rf {SOCKET_DIR} && mkdir -m 0711 {SOCKET_DIR}"])
    dst.run(["chown", "libvirt-qemu", str(SOCKET_DIR)])


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds of one handoff: guest frozen, whole migration call, and how the source was found."""

    gap_ms: float
    call_ms: float
    source_found: str
    call_result: str


class Handoff:
    """One move of one running domain from `src` to `dst`."""

    def __init__(
        self, src: Host, dst: Host, conns: dict[str, libvirt.virConnect], store: Etcd, image: Path, line: Timeline, *, local: bool = False
    ) -> None:
        self.local = local
        self.src, self.dst, self.store, self.image, self.line = src, dst, store, image, line
        self.src_conn, self.dst_conn = conns[src.name], conns[dst.name]
        self.key = ""
        self.call_result = "running"
        self.call_ms = 0.0
        self.call_done = threading.Event()

    def run(self, name: str, operation: str) -> Result:
        line, src, dst = self.line, self.src, self.dst
        self.key = f"vm/{name}"
        domain = self.src_conn.lookupByName(name)
        line.start = time.monotonic()
        own, revision = self.store.get(self.key)
        epoch = own["epoch"]
        handoff = {**own, "state": "HANDOFF", "op": operation, "to": dst.name}
        assert self.store.put_if(self.key, revision, handoff)
        line.say("H0", f"record HANDOFF {src.name}->{dst.name} epoch {epoch} op {operation}")
        qemu = src.qemu_process(name)
        pidfd = os.pidfd_open(qemu.pid)
        assert qemu.alive()
        line.say("H1", f"source QEMU pid {qemu.pid}; locks {show_locks(locks(src.space.holder().pid, self.image))}")
        destination = with_record(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE), epoch + 1, operation)
        caller = threading.Thread(target=self._migrate, args=(domain, destination), name="migrate")
        line.start = time.monotonic()
        caller.start()
        line.say("H2", "migrateToURI3 called")
        try:
            return self._switch(name, operation, epoch, domain, pidfd, caller)
        finally:
            os.close(pidfd)

    def _migrate(self, domain: libvirt.virDomain, destination: str) -> None:
        parameters: dict[str, Any] = {
            libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{DATA_SOCKET}",
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: destination,
        }
        flags = FLAGS
        if self.local:
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
            parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{DISK_SOCKET}"
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = ["vda"]
        try:
            domain.migrateToURI3(f"qemu+unix:///system?socket={RPC_SOCKET}", parameters, flags)
            self.call_result = "success"
        except libvirt.libvirtError as error:
            self.call_result = f"error code {error.get_error_code()} domain {error.get_error_domain()}: {error}"
        self.call_ms = (time.monotonic() - self.line.start) * 1000
        self.line.say(self.src.name, f"migrateToURI3 returned: {self.call_result}")
        self.call_done.set()

    def _switch(self, name: str, operation: str, epoch: int, domain: libvirt.virDomain, pidfd: int, caller: threading.Thread) -> Result:
        line, src, dst = self.line, self.src, self.dst
        line.wait_event(dst.name, "SUSPENDED PAUSED")
        line.say("H3", f"destination is {self._state(self.dst_conn.lookupByName(name))} (state PC)")
        frozen_at = line.wait_event(src.name, "SUSPENDED")
        _, revision = self.store.get(self.key)
        line.say("H4", f"record read before looking: mod_revision {revision}")
        stopped = _signal(pidfd, signal.SIGSTOP)
        line.say("H5i", f"SIGSTOP {'sent' if stopped else 'too late: already gone'}")
        found = self._inspect(name, domain, stopped)
        committed = {"owner": dst.name, "epoch": epoch + 1, "state": "COMMITTED", "op": operation}
        assert self.store.put_if(self.key, revision, committed), "somebody else changed the record"
        line.say("H5iii", f"committed owner {dst.name} epoch {epoch + 1}")
        killed_at = time.monotonic()
        _signal(pidfd, signal.SIGKILL)
        _wait_gone(pidfd)
        line.say("H5iv", f"source QEMU gone {(time.monotonic() - killed_at) * 1000:.1f} ms after SIGKILL")
        own, _ = self.store.get(self.key)
        assert (own["owner"], own["epoch"], own["state"], own["op"]) == (dst.name, epoch + 1, "COMMITTED", operation)
        copy = self.dst_conn.lookupByName(name)
        line.say("H6", "destination read the record again: owner is me")
        asked_at = time.monotonic()
        copy.resume()
        resumed_at = line.say("H6", f"resume() returned after {(time.monotonic() - asked_at) * 1000:.1f} ms")
        line.say("H6", f"destination {self._state(copy)}; locks seen by {dst.name}: "
                       f"{show_locks(locks(dst.space.holder().pid, self.image))}")  # fmt: skip
        gap_ms = (line.wait_event(dst.name, "RESUMED") - frozen_at) * 1000
        line.say("H6", f"GUEST FROZEN {gap_ms:.1f} ms by events, {(resumed_at - frozen_at) * 1000:.1f} ms to resume()'s return")
        caller.join(EVENT_TIMEOUT_S)
        self._after(name, epoch, operation, copy)
        return Result(gap_ms, self.call_ms, found, self.call_result)

    def _inspect(self, name: str, domain: libvirt.virDomain, stopped: bool) -> str:
        """H5ii: is the source inactive for certain? Raises when the evidence is not clean."""
        line, src, dst = self.line, self.src, self.dst
        asked_at = time.monotonic()
        held = locks(src.space.holder().pid, self.image)
        elsewhere = locks(dst.space.holder().pid, self.image)
        took_ms = (time.monotonic() - asked_at) * 1000
        line.say("H5ii", f"locks from {src.name} {show_locks(held)} | from {dst.name} {show_locks(elsewhere)} ({took_ms:.1f} ms)")
        if not stopped:
            line.wait_event(src.name, "STOPPED MIGRATED")
            return "gone, STOPPED MIGRATED"
        state = self._state_before_deadline(domain)
        line.say("H5ii", f"source {state}")
        resumed = any(where == src.name and what.startswith("RESUMED") for _, where, what in line.events)
        writers = (held[101], held[103]) if self.local else (held[101], elsewhere[101])  # the destination holds its own file
        if HELD in writers or resumed or state not in (NO_ANSWER, "PAUSED MIGRATION", "SHUTOFF MIGRATED"):
            raise RuntimeError(f"the source {name} is not clean: {state}, locks {held}, resumed {resumed}")
        if self.local:
            self._compare()
        return state

    def _compare(self) -> None:
        """Both files, as a guest would read them; the time this takes is not the product's."""
        files = [str(host.outside(self.image)) for host in (self.src, self.dst)]
        begin = time.monotonic()
        compare = ["qemu-img", "compare", "-q", "-U", "-f", "qcow2", "-F", "qcow2", *files]
        same = subprocess.run(compare, check=False).returncode == 0
        took_ms = (time.monotonic() - begin) * 1000
        self.line.say(
            "H5ii",
            f"the two files are {'identical' if same else 'DIFFERENT'} (comparing took {took_ms:.0f} ms, in no guest's time but here)",
        )
        assert same, "the copy of the disk was not whole"

    def _state_before_deadline(self, domain: libvirt.virDomain) -> str:
        """What libvirt says about the source, or `NO_ANSWER`.

        libvirtd may already be ending the source (its Confirm phase); it holds the domain's lock meanwhile, and ending a
        stopped QEMU takes it 12 s. The lock bytes alone are proof: a resumed source would have taken byte 101 again.
        """
        answers: list[str] = []
        asker = threading.Thread(target=lambda: answers.append(self._state(domain)), name="ask state", daemon=True)
        asker.start()
        asker.join(STATE_DEADLINE_S)
        return answers[0] if answers else NO_ANSWER

    def _state(self, domain: libvirt.virDomain) -> str:
        state, reason = domain.state()
        word = STATES[state]
        return f"{word} {constant_names(f'VIR_DOMAIN_{word}_').get(reason, reason)}"

    def _after(self, name: str, epoch: int, operation: str, copy: libvirt.virDomain) -> None:
        """What is left on both sides once the call has returned."""
        line, src, dst = self.line, self.src, self.dst
        try:
            left = self._state(self.src_conn.lookupByName(name))
        except libvirt.libvirtError as error:
            left = f"code {error.get_error_code()}" if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN else "no such domain"
        line.say("after", f"source: {left}; locks {show_locks(locks(dst.space.holder().pid, self.image))}")
        line.say("after", f"image {dst.run(['stat', '-c', '%U:%G %a', str(self.image)]).stdout.strip()} in {dst.name}")
        record = ET.fromstring(copy.XMLDesc()).find(f"metadata/{{{NAMESPACE}}}vm")
        assert record is not None
        assert record.attrib == {"epoch": str(epoch + 1), "operation": operation}, record.attrib
        line.say("after", f"destination metadata {record.attrib}, QEMU pid {dst.qemu_process(name).pid}")
        sockets = [f"{h.name}:{h.run(['ls', '-l', str(SOCKET_DIR)]).stdout.split(chr(10), 1)[1].strip()!r}" for h in (src, dst)]
        line.say("after", f"sockets {' '.join(sockets)}")


def _signal(pidfd: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _wait_gone(pidfd: int) -> None:
    if not select.select([pidfd], [], [], EVENT_TIMEOUT_S)[0]:
        raise TimeoutError("source QEMU did not die")


@contextmanager
def libvirt_events(hosts: list[Host], line: Timeline) -> Iterator[dict[str, libvirt.virConnect]]:
    """A connection to each host with its lifecycle events on `line`. Registers before the first open, ends its thread."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    ended = threading.Event()

    def pump() -> None:
        while not ended.is_set():
            libvirt.virEventRunDefaultImpl()

    def on_event(_conn: object, _domain: object, event: int, detail: int, host: str) -> None:
        line.event(host, f"{EVENTS[event]} {constant_names(f'VIR_DOMAIN_EVENT_{EVENTS[event]}_').get(detail, detail)}")

    wake = libvirt.virEventAddTimeout(100, lambda _timer, _opaque: None, None)
    thread = threading.Thread(target=pump, name="libvirt events")
    thread.start()
    conns, callbacks = {}, {}
    try:
        for host in hosts:
            conns[host.name] = libvirt.open(host.libvirt_uri)
            callbacks[host.name] = conns[host.name].domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_event, host.name)
        yield conns
    finally:
        for name, conn in conns.items():
            conn.domainEventDeregisterAny(callbacks[name])
            conn.close()
        ended.set()
        thread.join()
        libvirt.virEventRemoveTimeout(wake)


def start_guest(
    host: Host, conn: libvirt.virConnect, store: Etcd, name: str, image: Path, linux: bool, built: guest_build.GuestImages
) -> None:
    """Cold start: created paused, owner recorded, resumed; then wait for its first records on the disk."""
    source = built.linux if linux else built.bootsector
    host.run(["cp", str(source.resolve()), str(image)])
    kind = domain_type(built.linux)
    print(f"domain type {kind}, guest {source.name}, image owner {host.run(['stat', '-c', '%U', str(image)]).stdout.strip()}")
    assert store.put_if(f"vm/{name}", 0, {"owner": host.name, "epoch": 1, "state": "RUNNING", "op": ""})
    started = time.monotonic()
    domain = conn.createXML(domain_xml(name, kind, image, str(uuid.uuid4()), linux), libvirt.VIR_DOMAIN_START_PAUSED)
    domain.resume()
    print(f"createXML and resume {(time.monotonic() - started) * 1000:.0f} ms")
    print(f"image owner while running {host.run(['stat', '-c', '%U', str(image)]).stdout.strip()}, "
          f"QEMU user {os.stat(f'/proc/{host.qemu_process(name).pid}').st_uid}")  # fmt: skip
    wait_counter(host, image, linux, 0)


def empty_copy(src: Host, dst: Host, image: Path) -> None:
    """On the destination, a new file of the same size for the copy to fill."""
    info = json.loads(src.run(["qemu-img", "info", "-U", "--output=json", str(image)]).stdout)
    dst.run(["rm", "-f", str(image)])
    dst.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(info["virtual-size"])])


def wait_counter(host: Host, image: Path, linux: bool, beyond: int) -> None:
    """Wait until the guest has written a counter larger than `beyond`."""
    wait_for(f"a counter beyond {beyond}", lambda: read_counter(host, image, linux)[0] > beyond, EVENT_TIMEOUT_S)


def main() -> int:
    parser = argparse.ArgumentParser(prog="hostlerlab.handoff_by_hand", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--guest", choices=("linux", "bootsector"), default="linux")
    parser.add_argument("--local-disk", action="store_true", help="the disk is in the host's own pool and is copied along")
    parser.add_argument("--lockd", action="store_true", help="with leases of virtlockd as well")
    parser.add_argument("--dir", type=Path, default=Path("build/lab"))
    options = parser.parse_args()
    linux = options.guest == "linux"
    lab = Lab(options.dir, default_specs(2, lockd=options.lockd))
    lab.up()
    built = guest_build.build()
    results = []
    local = options.local_disk
    name, image = f"hand-{options.guest}", (LOCAL_POOL if local else SHARED_POOL) / f"{uuid.uuid4()}.qcow2"
    src, dst = lab.hosts["n1"], lab.hosts["n2"]
    line = Timeline(time.monotonic())
    with EtcdCluster(lab.folder / f"etcd-{uuid.uuid4().hex}") as etcd, libvirt_events([src, dst], line) as conns:
        store = Etcd(etcd.client_urls[0])
        try:
            start_guest(src, conns[src.name], store, name, image, linux, built)
            for run_number in range(1, options.runs + 1):
                print(f"--- run {run_number}: {src.name} -> {dst.name}")
                line.events.clear()
                prepare_sockets(src, dst)
                before, _ = read_counter(src, image, linux)
                if local:
                    empty_copy(src, dst, image)
                with relays(src, dst):
                    results.append(Handoff(src, dst, conns, store, image, line, local=local).run(name, f"op-{run_number}"))
                wait_counter(dst, image, linux, before + 20)
                after, faults = read_counter(dst, image, linux)
                line.say("after", f"counter {before} -> {after}; faults in the records: {faults or 'none'}")
                src, dst = dst, src
        finally:
            for host in (src, dst):
                for leftover in conns[host.name].listAllDomains():
                    leftover.destroy()
            for host in (src, dst):
                host.run(["rm", "-f", str(image)])
    print("--- gap ms, call ms, how the source was found, what the call returned")
    for result in results:
        print(f"{result.gap_ms:8.1f} {result.call_ms:8.1f}  {result.source_found}  |  {result.call_result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
