"""Whether KVM is usable on this host, proved by running something with it.

/dev/kvm opens, libvirt advertises it and even a boot sector comes up on a paravirtual KVM that interprets a guest's kernel one instruction at
a time, on which no ordinary kernel ever gets anywhere. So the proof is speed: a boot sector of our own (`acceleration_probe.S`) that enters
64-bit mode and must finish a loop that takes a processor a fraction of a second.
"""

import asyncio
import os
from asyncio.subprocess import DEVNULL
from pathlib import Path

import structlog

from nodeagent.core.domain_xml import Acceleration

log = structlog.get_logger(__name__)

QEMU = "qemu-system-x86_64"
PROBE = Path(__file__).with_name("acceleration_probe.bin")
PROBE_DEADLINE_S = 5.0
"""QEMU's start, its BIOS and the loop take 0.35 s under emulation on a slow machine."""
EXIT_STATUS = 0x21 << 1 | 1
"""isa-debug-exit makes QEMU's status of the byte that the probe writes; QEMU itself never ends with it."""
KVM_DEVICE = "/dev/kvm"


async def measured_acceleration(qemu: str = QEMU) -> Acceleration:
    """KVM if the probe comes through with it, otherwise EMULATION. Takes up to PROBE_DEADLINE_S."""
    if os.access(KVM_DEVICE, os.R_OK | os.W_OK) and await comes_through("kvm", qemu):
        return Acceleration.KVM
    return Acceleration.EMULATION


async def comes_through(accelerator: str, qemu: str = QEMU, deadline_s: float = PROBE_DEADLINE_S) -> bool:
    """Run the probe with QEMU's `accelerator` ("kvm", "tcg"); True: it finished in time."""
    disk = f"file={PROBE},format=raw,if=floppy,readonly=on"  # SeaBIOS boots no hard disk of one sector
    arguments = (
        *("-accel", accelerator, "-machine", "pc", "-cpu", "qemu64", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-sandbox", "on", "-drive", disk),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    )
    try:
        process = await asyncio.create_subprocess_exec(qemu, *arguments, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    except FileNotFoundError:
        log.warning("there is no QEMU to probe with", program=qemu)
        return False
    try:
        async with asyncio.timeout(deadline_s):
            return await process.wait() == EXIT_STATUS
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
