"""The independent observer of one VM: looks every 100 ms at what is true, with nothing of Hostler's and nothing of libvirt's.

`observer.py CONFIG` samples until it gets SIGTERM and appends one line of JSON per sample to a file; `breaches` judges them afterwards. It sees
 - the VM's QEMU processes on all hosts, from /proc: stopped by a signal or not, and how often the threads of its vCPUs were given a CPU. A guest
   that executes is woken 18 times a second by its timer; the vCPU of a paused one sleeps;
 - the guest's own record on its disk, read past every cache (of a shared disk from the storage's brick): its counter, and how many foreign writes
   the guest found. Of a disk that is copied along every host's file is read, and the newest record counts;
 - QEMU's write lock on the image, asked of the mounted file system (F_OFD_GETLK);
 - the VM's record, its claims and the operations on it in etcd, over etcd's own JSON gateway, linearizably.
Only the standard library is imported. The slow looks (locks, etcd) have threads of their own: a store without a leader does not blind the rest.
"""

import base64
import fcntl
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PERIOD_S = 0.1
STATE = "/hostler/state/"
ETCD_TIMEOUT_S = 1.0

F_OFD_GETLK = 36
WRITE_BYTE = 101
"""QEMU holds this byte of an image while it may write to it."""
_FLOCK = struct.Struct("hhqqi4x")

RECORD_OFFSET = 8 * 512
_RECORD = struct.Struct("<8sIII")
_MAGIC = b"HOSTLERB"
BLOCK = 4096

ACTIVE_OF, ACTIVE_MIN = 4, 3
TIMER_HZ = 15
"""A process executes when its vCPUs were given a CPU in 3 of the last 4 intervals, and as often as the guest's timer (18.2 a second, less what two
samples may miss). A starting or loading copy is woken too: four times in half a second, or twenty times in one interval, and then not again."""
TOGETHER = 2
"""Intervals in a row in which two guests must have been woken to have executed at once."""
BLIND_S = 1.0
"""A longer gap between two samples proves nothing about what was between them."""
LOCKLESS_SAMPLES = 5
"""A guest that executes so many samples in a row while nobody holds the write lock has a disk that nothing protects."""
STILL_S = 1.0
"""The guest counts 18 times a second: a counter that stands so long is an outage."""
OLDER = 3
"""A guest whose own file is so many counts behind another host's runs on an old disk. It may count while one file is read after the other."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One QEMU process: `stopped` by a signal in every thread; `slices`: how often its vCPUs got a CPU so far."""

    pid: int
    host: str
    stopped: bool
    slices: int


@dataclass(frozen=True, slots=True)
class Record:
    """The VM in etcd. `revision`: of its key; `asked_s`: when the read was sent."""

    revision: int
    epoch: int
    node: str
    state: str
    observed: str
    reason: str
    claims: tuple[str, ...]
    asked_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one time (seconds, monotonic). `record`: None while etcd does not answer; `locked`: None while unknown or not asked.
    `files`: of a local disk, the counter in each host's file."""

    at_s: float
    processes: tuple[Seen, ...]
    counter: int
    foreign: int
    locked: bool | None = None
    record: Record | None = None
    files: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that was broken: which, when, and the samples around it."""

    rule: str
    at_s: float
    what: str
    samples: tuple[Sample, ...] = field(repr=False, default=())


# ---- judging


def executing(samples: Sequence[Sample], index: int) -> frozenset[int]:
    """The pids whose guests execute at that sample."""
    if index < ACTIVE_OF:
        return frozenset()
    window = [{seen.pid: seen for seen in sample.processes} for sample in samples[index - ACTIVE_OF : index + 1]]
    pids = frozenset(window[-1])
    took_s = samples[index].at_s - samples[index - ACTIVE_OF].at_s
    return frozenset(pid for pid in pids if not window[-1][pid].stopped and _ticks([one[pid] for one in window if pid in one], took_s))


def _ticks(seen: Sequence[Seen], took_s: float) -> bool:
    active = sum(before.slices < after.slices for before, after in itertools.pairwise(seen))
    return active >= ACTIVE_MIN and seen[-1].slices - seen[0].slices >= TIMER_HZ * took_s


def breaches(samples: Sequence[Sample]) -> list[Breach]:
    """Every broken promise, once for each time that it begins."""
    return sorted(
        itertools.chain.from_iterable(
            look(samples) for look in (_two_running, _writers, _older_disk, _not_owner, _epochs, _unlocked, _blind)
        ),
        key=lambda breach: breach.at_s,
    )


def _two_running(samples: Sequence[Sample]) -> Iterator[Breach]:
    """Both of them in each of the last two intervals: in one interval the source may have its last tick and the destination its first."""

    def what(index: int) -> str:
        pids = frozenset(pid for pid in executing(samples, index) if _woken(samples[index - TOGETHER : index + 1], pid))
        return f"QEMU {sorted(pids)} execute at once" if len(pids) > 1 else ""

    yield from _beginnings("two running", samples, what)


def _woken(samples: Sequence[Sample], pid: int) -> bool:
    """Whether its vCPUs were given a CPU between every two of these samples."""
    slices = [seen.slices for sample in samples for seen in sample.processes if seen.pid == pid]
    return all(before < after for before, after in itertools.pairwise(slices))


def _writers(samples: Sequence[Sample]) -> Iterator[Breach]:
    """A counter that goes back was written from an older memory; a foreign write is found by the guest itself, in its own record."""
    for index, (before, after) in enumerate(itertools.pairwise(samples), 1):
        if after.counter < before.counter:
            yield _breach("stale memory", samples, index, f"the counter on the disk goes back from {before.counter} to {after.counter}")
        if after.foreign > before.foreign:
            yield _breach("two writers", samples, index, f"the guest found {after.foreign - before.foreign} writes that it had not made")


def _older_disk(samples: Sequence[Sample]) -> Iterator[Breach]:
    """A guest that was let go on, or started, where the file is not the newest one."""

    def what(index: int) -> str:
        files = dict(samples[index].files)
        pids = executing(samples, index)
        for host in sorted({seen.host for seen in samples[index].processes if seen.pid in pids} & files.keys()):
            if max(files.values()) - files[host] > OLDER:
                return f"executes on {host}, whose file is at {files[host]}; the newest is at {max(files.values())}"
        return ""

    yield from _beginnings("older disk", samples, what)


def _not_owner(samples: Sequence[Sample]) -> Iterator[Breach]:
    """Executing where the record, unchanged since before the look and until after it, does not let it."""

    def what(index: int) -> str:
        around = [sample.record for sample in samples[max(0, index - ACTIVE_OF - 1) : index + 4]]
        if index + 4 > len(samples) or any(record is None for record in around):
            return ""
        records = [record for record in around if record is not None]
        if len({record.revision for record in records}) > 1 or records[-1].asked_s < samples[index].at_s:
            return ""
        allowed = "" if records[0].state == "STOPPED" else records[0].node
        pids = executing(samples, index)
        where = sorted({seen.host for seen in samples[index].processes if seen.pid in pids} - {allowed})
        return f"executes on {', '.join(where)}, the record says {records[0].state} on {records[0].node}" if where else ""

    yield from _beginnings("not the owner", samples, what)


def _epochs(samples: Sequence[Sample]) -> Iterator[Breach]:
    known = [(index, sample.record) for index, sample in enumerate(samples) if sample.record is not None]
    for (_, before), (index, after) in itertools.pairwise(known):
        if after.epoch < before.epoch:
            yield _breach("epoch went back", samples, index, f"from {before.epoch} to {after.epoch}")


def _unlocked(samples: Sequence[Sample]) -> Iterator[Breach]:
    def what(index: int) -> str:
        last = samples[max(0, index - LOCKLESS_SAMPLES + 1) : index + 1]
        bare = len(last) == LOCKLESS_SAMPLES and all(sample.locked is False for sample in last)
        return "executes and nobody holds the image's write lock" if bare and executing(samples, index) else ""

    yield from _beginnings("no lock", samples, what)


def _blind(samples: Sequence[Sample]) -> Iterator[Breach]:
    for index, (before, after) in enumerate(itertools.pairwise(samples), 1):
        if after.at_s - before.at_s > BLIND_S:
            yield _breach("blind", samples, index, f"nobody looked for {after.at_s - before.at_s:.1f} s")


def _beginnings(rule: str, samples: Sequence[Sample], what: Callable[[int], str]) -> Iterator[Breach]:
    was = ""
    for index in range(len(samples)):
        now = what(index)
        if now and not was:
            yield _breach(rule, samples, index, now)
        was = now


def _breach(rule: str, samples: Sequence[Sample], index: int, what: str) -> Breach:
    return Breach(rule, samples[index].at_s, what, tuple(samples[max(0, index - 10) : index + 10]))


def outages(samples: Sequence[Sample], least_s: float = STILL_S) -> list[tuple[float, float]]:
    """From when to when the guest did not count, the last one up to the end of the samples if it still stands."""
    found, since = [], samples[0].at_s if samples else 0.0
    for before, after in itertools.pairwise(samples):
        if after.counter != before.counter:
            if after.at_s - since >= least_s:
                found.append((since, after.at_s))
            since = after.at_s
    if samples and samples[-1].at_s - since >= least_s:
        found.append((since, samples[-1].at_s))
    return found


def longest_still_s(samples: Sequence[Sample]) -> float:
    """The longest time without a count."""
    return max((end - start for start, end in outages(samples, 0.0)), default=0.0)


def load(path: Path) -> list[Sample]:
    """The samples of a file; a last line that is not whole is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [_sample(json.loads(line)) for line in lines if line.endswith("\n")]


def _sample(told: dict[str, Any]) -> Sample:
    record = told["record"]
    return Sample(
        told["at_s"],
        tuple(Seen(**seen) for seen in told["processes"]),
        told["counter"],
        told["foreign"],
        told["locked"],
        None if record is None else Record(**{**record, "claims": tuple(record["claims"])}),
        tuple((host, counter) for host, counter in told["files"]),
    )


# ---- looking


@dataclass(frozen=True, slots=True)
class Config:
    """`hosts`: a process inside each host, by name; `image`: the volume's file on the brick; `mounted`: the same inside the hosts, "": it has no
    locks; `etcd`: client URLs. `files`: of a disk that is not shared, in the place of the two, where it would be on each host, seen from here."""

    vm_id: str
    vm_uid: str
    hosts: dict[str, int]
    etcd: list[str]
    image: str
    mounted: str
    out: str
    files: dict[str, str] = field(default_factory=dict)


def processes(vm_uid: str, hosts: dict[str, str]) -> tuple[Seen, ...]:
    """The VM's QEMU processes; `hosts`: name by network namespace."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_qemu_of(name, vm_uid):
            try:
                host = hosts.get(os.readlink(f"/proc/{name}/ns/net"), "?")
                states, slices = _threads(name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            found.append(Seen(int(name), host, bool(states) and all(state in "Tt" for state in states), slices))
    return tuple(found)


def _is_qemu_of(pid: str, vm_uid: str) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return arguments[0].endswith(b"qemu-system-x86_64") and (b"-uuid", vm_uid.encode()) in itertools.pairwise(arguments)


def _threads(pid: str) -> tuple[str, int]:
    """(the states of all threads, a letter each; the time slices of the vCPUs' threads)."""
    states, slices = "", 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            text = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
            if text[text.index("(") + 1 :].startswith("CPU "):
                slices += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[2])
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread ended meanwhile
        states += text[text.rindex(")") + 2]
    return states, slices


class Disk:
    """The guest's record in a raw or qcow2 file, past the page cache."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, BLOCK)
        self._offset = 0

    def _read(self, offset: int) -> bytes:
        read = os.preadv(self._fd, [self._buffer], offset // BLOCK * BLOCK)
        return self._buffer[offset % BLOCK : read] + bytes(BLOCK)  # what the file does not have yet is zeros

    def close(self) -> None:
        os.close(self._fd)

    def _record_at(self) -> int:
        """Where the record is in the file. In a qcow2: by its first L1 and L2 entry; 0 while that is not allocated."""
        header = self._read(0)
        if header[:4] != b"QFI\xfb":
            return RECORD_OFFSET
        (l1,) = struct.unpack_from(">Q", header, 40)
        l2 = _entry(self._read(l1))
        data = _entry(self._read(l2)) if l2 else 0
        return data + RECORD_OFFSET if data else 0

    def record(self) -> tuple[int, int]:
        """(counter, foreign); zeros before the guest's first write."""
        self._offset = self._offset or self._record_at()
        if not self._offset:
            return 0, 0
        magic, counter, foreign, _ = _RECORD.unpack_from(self._read(self._offset))
        return (counter, foreign) if magic == _MAGIC else (0, 0)


def local_records(files: dict[str, str]) -> dict[str, tuple[int, int]]:
    """(counter, foreign) by host, of the hosts that have the file: files come and go as the VM moves."""
    found = {}
    for host, path in files.items():
        try:
            disk = Disk(path)
        except FileNotFoundError:
            continue
        try:
            found[host] = disk.record()
        finally:
            disk.close()
    return found


def _entry(table: bytes) -> int:
    return int(struct.unpack_from(">Q", table)[0]) & 0x00FF_FFFF_FFFF_FE00


def locked(path: str) -> bool:
    """Whether anybody holds QEMU's write lock on the image."""
    fd = os.open(path, os.O_RDONLY)
    try:
        answer = fcntl.fcntl(fd, F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, WRITE_BYTE, 1, 0))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class Etcd:
    """Linearizable reads of whichever member answers."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    def range(self, prefix: str) -> dict[str, tuple[int, dict[str, Any]]]:
        """(mod revision, value) of every key under the prefix, by the rest of the key. Raises OSError: nobody answers."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        answer = self.ask("kv/range", {"key": _b64(prefix), "range_end": _b64(end)})
        found = {}
        for pair in answer.get("kvs", []):
            value = base64.b64decode(pair.get("value", ""))
            if value:
                found[base64.b64decode(pair["key"]).decode().removeprefix(prefix)] = (int(pair["mod_revision"]), json.loads(value))
        return found

    def ask(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        for _ in self._urls:
            request = urllib.request.Request(f"{self._urls[0]}/v3/{what}", json.dumps(body).encode())
            try:
                with urllib.request.urlopen(request, timeout=ETCD_TIMEOUT_S) as reply:
                    answer: dict[str, Any] = json.load(reply)
                    return answer
            except OSError:
                self._urls.append(self._urls.pop(0))
        raise OSError("no member of etcd answers")

    def record(self, vm_id: str) -> Record | None:
        asked_s = time.monotonic()
        try:
            vms, claims = self.range(f"{STATE}vm/"), self.range(f"{STATE}claim/")
        except OSError:
            return None
        if vm_id not in vms:
            return None
        revision, vm = vms[vm_id]
        owner = vm["owner"]
        charged = tuple(sorted(key.partition("/")[0] for key in claims if key.endswith(f"/{vm_id}")))
        return Record(revision, owner["epoch"], owner["node_id"], owner["state"], vm["observed"], vm.get("reason", ""), charged, asked_s)


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class _Latest:
    """The newest answer of a slow look, made over and over in a thread of its own."""

    def __init__(self, look: Callable[[], Any], stop: threading.Event) -> None:
        self.answer: Any = None
        self._look = look
        self._stop = stop
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answer = self._look()
            except OSError:
                self.answer = None
            self._stop.wait(PERIOD_S)


def watch(config: Config, stop: threading.Event) -> None:
    """Sample until told to stop."""
    spaces = {os.readlink(f"/proc/{pid}/ns/net"): name for name, pid in config.hosts.items()}
    disk, etcd = None if config.files else Disk(config.image), Etcd(config.etcd)
    records = _Latest(lambda: etcd.record(config.vm_id), stop)
    inside = next(iter(config.hosts.values()))

    def any_lock() -> bool | None:
        if config.files:
            return any(locked(path) for path in config.files.values() if os.path.exists(path))
        return locked(f"/proc/{inside}/root{config.mounted}") if config.mounted else None

    locks = _Latest(any_lock, stop)
    due_s = time.monotonic()
    with open(config.out, "a", buffering=1) as out:
        while not stop.is_set():
            local = local_records(config.files)
            counter, foreign = disk.record() if disk is not None else max(local.values(), default=(0, 0))
            files = tuple((host, record[0]) for host, record in local.items())
            sample = Sample(time.monotonic(), processes(config.vm_uid, spaces), counter, foreign, locks.answer, records.answer, files)
            out.write(json.dumps(asdict(sample)) + "\n")
            due_s = max(due_s + PERIOD_S, time.monotonic())
            stop.wait(due_s - time.monotonic())


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    watch(Config(**json.loads(Path(sys.argv[1]).read_text())), stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
