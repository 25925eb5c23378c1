"""The guests that are moved: what each is, where its heartbeat stands, and a dirtying one made for this machine's speed.

`idle` halts, and ticks 250 times a second. `dirtying` writes memory and nothing else, so that
the emulator's fault with guests that are busy on the network during slow copies (docs/decisions/0007) has nothing to break; it
looks itself whether its pages are whole. `linux` sends a line every 10 ms to whoever connects.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.migration import figures, memory, peers

BIOS_TICKS = 0x46C
WORK = 0x8000
DISK_BYTES = 1 << 20
DIRTY_FROM_MIB = 16
FIRST_SPIN = 10_000
CALIBRATION_S = 2.0
CALIBRATIONS = 6
CALIBRATED = 0.1
"""So near to the speed that was asked for is near enough; the measured one is what counts."""
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Guest:
    """`beat`: the address of the heartbeat in its memory, None: it is watched over the network. `dirties`: bytes per second at full speed."""

    image: str
    memory_mib: int
    disk: Path
    beat: int | None = None
    needle: str = ""
    dirties: float = 0.0


def idle(folder: Path) -> Guest:
    image, raw = assemble(folder, "idle", "idle")
    return Guest("idle", 32, image, BIOS_TICKS, raw.read_bytes()[: memory.NEEDLE_BYTES].hex())


def linux(qcow2: Path) -> Guest:
    return Guest("guest", 128, qcow2)


def assemble(folder: Path, name: str, source: str, **symbols: int) -> tuple[Path, Path]:
    """(qcow2, raw) of the guest whose boot sector that file is, with these symbols."""
    code, obj, raw = Path(__file__).with_name(f"{source}.S"), folder / f"{name}.o", folder / f"{name}.raw"
    subprocess.run(["as", "--32", *(f"--defsym={symbol}={value}" for symbol, value in symbols.items()), "-o", obj, code], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-e", "_start", "-o", raw, obj], check=True)
    raw.write_bytes(raw.read_bytes().ljust(DISK_BYTES, b"\0"))
    image = folder / f"{name}.qcow2"
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    return image, raw


async def dirtying(folder: Path, name: str, mib: int, bytes_per_s: float, accelerator: str) -> Guest:
    """One that dirties as fast as asked, as near as a few measurements come, or as fast as this machine lets it."""
    spin = FIRST_SPIN
    for _ in range(CALIBRATIONS):
        image, raw = await asyncio.to_thread(assemble, folder, name, "dirtying", PAGES=mib * 256, SPIN=spin)
        guest = Guest(name, DIRTY_FROM_MIB + mib, image, WORK, raw.read_bytes()[: memory.NEEDLE_BYTES].hex())
        rate = await _speed(folder, guest, raw, accelerator)
        if abs(rate / bytes_per_s - 1) <= CALIBRATED or spin == 1:
            break
        spin = max(1, round(spin * rate / bytes_per_s))
    print(f"{name}: dirties {rate / 1e6:.0f} MB/s at full speed ({spin} turns between two pages)", flush=True)
    return replace(guest, dirties=rate)


async def _speed(folder: Path, guest: Guest, raw: Path, accelerator: str) -> float:
    """Bytes per second of the guest alone, in a QEMU of its own."""
    pid_file = folder / "speed.pid"
    command = ["qemu-system-x86_64", "-accel", accelerator, "-m", str(guest.memory_mib), "-nodefaults", "-display", "none"]
    command += ["-drive", f"file={raw},format=raw,if=ide,read-only=off", "-pidfile", str(pid_file)]
    qemu = await asyncio.create_subprocess_exec(*command)
    try:
        out = folder / "speed.txt"
        async with watching(guest, [pid_file], out):
            began_s = await beating(out, 0.0)
            ended_s = await beating(out, began_s + CALIBRATION_S)
        rate = figures.work_rate(figures.beats_of(out.read_text()), began_s, ended_s)
    finally:
        qemu.terminate()
        await qemu.wait()
    if rate is None:
        raise RuntimeError("the dirtying guest does not work")
    return rate


def watching(guest: Guest, pid_files: list[Path], out: Path) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """The reader of its heartbeat, while the block lasts."""
    assert guest.beat is not None
    out.unlink(missing_ok=True)
    config = memory.config_text([str(path) for path in pid_files], guest.beat, guest.memory_mib, guest.needle, str(out))
    return peers.reading([sys.executable, str(Path(memory.__file__)), config])


async def beating(out: Path, after_s: float, host: int | None = None, timeout_s: float = 30.0) -> float:
    """When a heartbeat was seen after that moment (on that host). TimeoutError: the guest does not execute."""
    seen_s = 0.0

    def beats() -> bool:
        nonlocal seen_s
        last = last_beat(out)
        seen_s = 0.0 if last is None else last.at_s
        return last is not None and last.at_s > after_s and host in (None, last.host)

    await until(f"a heartbeat in {out.name}", beats, timeout_s)
    return seen_s


def last_beat(out: Path) -> figures.Beat | None:
    """The last whole line of a reader's file."""
    if not out.exists():
        return None
    with out.open("rb") as file:
        file.seek(max(0, out.stat().st_size - 256))
        text = file.read().decode()
    whole = [line for line in text.splitlines(keepends=True)[1 if len(text) >= 256 else 0 :] if line.endswith("\n")]
    return figures.beats_of(whole[-1])[0] if whole else None


async def until(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if condition():
                    return
                await asyncio.sleep(LOOK_S)
    except TimeoutError as late:
        raise TimeoutError(f"waited {timeout_s:g} s for {what}") from late
