"""Whether KVM is usable here, proved by booting a Linux guest with it.

Decision: the device node, libvirt's capabilities, a boot sector and even 64-bit code with paging all work on a machine
whose paravirtual KVM never brings up an ordinary kernel, so only a guest that reaches its own init counts.
"""

import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

# A healthy KVM needs about a second; emulation needs three. Slower than this is no use even if it arrives.
BOOT_TIMEOUT_S = 10.0
MARKER = b"ready boot_id="
READ_BYTES = 4096


def domain_type(image: Path) -> Literal["kvm", "qemu"]:
    """libvirt's domain type for this machine. `image` is the lab's Linux guest (bootable qcow2); it is not written to."""
    return "kvm" if Path("/dev/kvm").exists() and boots(image, "kvm") else "qemu"


def boots(image: Path, accelerator: str, timeout_s: float = BOOT_TIMEOUT_S) -> bool:
    """True when the guest says on its console that it is up before the deadline."""
    line = [
        *("qemu-system-x86_64", "-accel", accelerator, "-machine", "pc", "-m", "256", "-nodefaults", "-display", "none"),
        *("-serial", "stdio", "-drive", f"file={image},format=qcow2,if=virtio,snapshot=on"),
    ]
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        return _says(process.stdout.fileno(), MARKER, time.monotonic() + timeout_s)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _says(fd: int, marker: bytes, deadline: float) -> bool:
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([fd], [], [], left)[0]:
            return False
        piece = os.read(fd, READ_BYTES)
        if not piece:
            return False
        said = said[-len(marker) :] + piece
        if marker in said:
            return True
    return False
