"""Witnesses from outside: clients of the Linux guest's two services, and readers of the counters on disk.

Decides what "the guest did not notice" means in figures. A stream keeps one TCP connection for the whole of a fault or a
migration: `reconnects` is 0 by construction, because a lost connection ends the watch with an error; lines are numbered
by the guest, so a lost one shows; the longest gap between arrivals is the outage seen by a client (10 ms is quiet; after
lost packets TCP's own retransmission timer can lengthen it to twice the outage). The guest's time stamps stand still
while the VM is paused, so their lag behind our clock is the total pause.
"""

import asyncio
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostlerlab.guest import layout

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 5.0
RETRY_INTERVAL_S = 0.1
READ_IMAGE_TIMEOUT_S = 30.0
# An hour of lines at 100 a second; whoever watches longer opens a second stream.
LINES_MAX = 360_000


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the stream: `arrived_s` on our monotonic clock, `guest_ms` on the guest's."""

    arrived_s: float
    seq: int
    boot_id: str
    guest_ms: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What a client saw. `seq_gaps` are (expected, got); more than one boot id means that the guest was not the same.

    `paused_ms` is how much the guest's clock fell behind ours between the first and the last line: the sum of all
    pauses, to about 10 ms. `longest_gap_at_s` is the arrival that ended the longest gap, on our monotonic clock.
    """

    lines: int
    duration_s: float
    seq_gaps: tuple[tuple[int, int], ...]
    boot_ids: tuple[str, ...]
    longest_gap_ms: float
    longest_gap_at_s: float
    paused_ms: float
    reconnects: int = 0

    @property
    def intact(self) -> bool:
        """Nothing lost, nothing repeated, one and the same guest all the time."""
        return self.lines > 0 and not self.seq_gaps and len(self.boot_ids) == 1


def report(lines: list[Line]) -> StreamReport:
    """Sums a stream up; pure."""
    if not lines:
        return StreamReport(0, 0.0, (), (), 0.0, 0.0, 0.0)
    pairs = list(itertools.pairwise(lines))
    starts_late = ((0, lines[0].seq),) if lines[0].seq else ()
    gap_s, gap_end_s = max(((b.arrived_s - a.arrived_s, b.arrived_s) for a, b in pairs), default=(0.0, lines[0].arrived_s))
    duration_s = lines[-1].arrived_s - lines[0].arrived_s
    return StreamReport(
        lines=len(lines),
        duration_s=duration_s,
        seq_gaps=starts_late + tuple((a.seq + 1, b.seq) for a, b in pairs if b.seq != a.seq + 1),
        boot_ids=tuple(dict.fromkeys(line.boot_id for line in lines)),
        longest_gap_ms=gap_s * 1000,
        longest_gap_at_s=gap_end_s,
        paused_ms=max(0.0, duration_s * 1000 - (lines[-1].guest_ms - lines[0].guest_ms)),
    )


class StreamClient:
    """One connection to the stream, from its opening to `stop()`. Use `watch()`, or run `run()` in a task of yours."""

    def __init__(self, host: str, port: int = layout.STREAM_PORT, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = host
        self.port = port
        self.lines: list[Line] = []
        self._clock = clock
        self._arrived = asyncio.Condition()
        self._writer: asyncio.StreamWriter | None = None
        self._stopped = False

    async def run(self) -> None:
        """Connects and reads until `stop()`. Raises ConnectionError when the connection ends before, TimeoutError when it
        cannot be opened in CONNECT_TIMEOUT_S; never connects a second time."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, self._writer = await asyncio.open_connection(self.host, self.port)
        reason = "closed by the guest"
        try:
            await self._read(reader)
        except ConnectionError as error:
            reason = repr(error)
        finally:
            self._writer.close()
        if not self._stopped:
            raise ConnectionError(f"stream of {self.host}:{self.port} ended after {len(self.lines)} lines: {reason}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while not self._stopped and (text := await reader.readline()).endswith(b"\n"):
            seq, boot_id, guest_ms = text.split()
            self.lines.append(Line(self._clock(), int(seq), boot_id.decode("ascii"), int(guest_ms)))
            if len(self.lines) > LINES_MAX:
                raise ValueError(f"more than {LINES_MAX} lines watched")
            async with self._arrived:
                self._arrived.notify_all()

    async def wait_lines(self, more: int = 1, *, timeout_s: float = 10.0) -> None:
        """Returns when `more` lines have arrived from now on; TimeoutError says how many did."""
        wanted = len(self.lines) + more
        try:
            async with asyncio.timeout(timeout_s), self._arrived:
                await self._arrived.wait_for(lambda: len(self.lines) >= wanted)
        except TimeoutError as late:
            got = len(self.lines) - (wanted - more)
            raise TimeoutError(f"{got} of {more} lines from {self.host}:{self.port} in {timeout_s} s") from late

    def stop(self) -> None:
        """Ends `run()`; the report stays readable."""
        self._stopped = True
        if self._writer is not None:
            self._writer.transport.abort()

    def report(self) -> StreamReport:
        """What has been seen so far."""
        return report(self.lines)


@asynccontextmanager
async def watch(host: str, port: int = layout.STREAM_PORT) -> AsyncIterator[StreamClient]:
    """`async with watch(address) as stream:` reads in the background; entered when the first line has arrived.

    Raises ExceptionGroup(ConnectionError) out of the block as soon as the connection is lost.
    """
    client = StreamClient(host, port)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.run(), name=f"guest-watch-{host}")
        await client.wait_lines(1)
        try:
            yield client
        finally:
            client.stop()


@dataclass(frozen=True, slots=True)
class GuestAnswer:
    """What the guest says of itself. Each `max_*` is the largest since the question before, whoever asked it.

    `max_stall_ms`: longest time between two heartbeats on the guest's clock (starved vCPU, stopped QEMU process). Quiet
    is about 10 ms while a stream is open and 50 ms when none is, so watch first, then ask once to start from zero.
    `max_pause_ms`: longest jump of the CMOS clock against it (paused VM, migration downtime), known 1-3 s after the pause.
    `max_gap_ms` is the larger of the two. `disk_foreign`: records on its disk that this boot did not write.
    `clock_edges` counts the seconds that the CMOS witness has seen: below 3 it cannot tell anything yet.
    """

    boot_id: str
    hostname: str
    uptime_ms: int
    mem_total_kib: int
    vcpus: int
    disk_counter: int
    disk_foreign: int
    disk_errors: int
    max_disk_write_ms: float
    max_gap_ms: float
    max_stall_ms: float
    max_pause_ms: float
    paused_total_ms: float
    clock_edges: int


async def ask(host: str, port: int = layout.ASK_PORT, *, timeout_s: float = ANSWER_TIMEOUT_S) -> GuestAnswer:
    """One question, one answer. Raises OSError or TimeoutError when the guest does not answer."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"status\n")
            await writer.drain()
            text = await reader.readline()
        finally:
            writer.close()
    if not text:
        raise ConnectionError(f"{host}:{port} closed without an answer")
    fields: dict[str, Any] = json.loads(text)
    return GuestAnswer(**fields)


async def wait_answer(host: str, port: int = layout.ASK_PORT, *, timeout_s: float = 60.0) -> GuestAnswer:
    """Asks until the guest is up. TimeoutError carries the last refusal."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await ask(host, port, timeout_s=1.0)
                except (OSError, TimeoutError) as refused:
                    last = refused
                await asyncio.sleep(RETRY_INTERVAL_S)
    except TimeoutError as late:
        raise TimeoutError(f"{host}:{port} did not answer in {timeout_s} s, last: {last!r}") from late


def read_disk_ring(path: Path) -> tuple[layout.DiskRecord, ...]:
    """The last records that the Linux guest wrote into this image (raw or qcow2, VM running or not), oldest first.

    Read with `qemu-img dd -U`, which takes no lock and never writes. The guest flushes each record, and a qcow2's tables
    with it; a record being written at this moment fails its checksum and is left out. For an image under
    /proc/PID/root or on a network file system read it where it is mounted. Blocking: about 50 ms.
    """
    return layout.parse_ring(_read(path, layout.AREA_OFFSET, layout.AREA_BYTES))


def read_disk_counter(path: Path) -> layout.DiskRecord | None:
    """The newest record in this image, or None when no guest has written to it yet."""
    ring = read_disk_ring(path)
    return ring[-1] if ring else None


def read_bootsector_counter(path: Path) -> layout.BootsectorRecord | None:
    """The boot sector guest's record, or None before its first write."""
    return layout.parse_bootsector_record(_read(path, layout.BOOTSECTOR_RECORD_OFFSET, layout.SECTOR_BYTES))


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        image_format = "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
    skip = offset // size
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        # Older qemu-img counts the skipped blocks as part of `count`, newer ones do not: ask for enough, keep the first.
        what = [f"bs={size}", f"skip={skip}", f"count={skip + 1}", f"if={path}", f"of={part}"]
        command = ["qemu-img", "dd", "-U", "-f", image_format, "-O", "raw", *what]
        subprocess.run(command, check=True, capture_output=True, timeout=READ_IMAGE_TIMEOUT_S)
        with part.open("rb") as file:
            return file.read(size).ljust(size, b"\0")
