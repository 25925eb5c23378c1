"""The only place that runs qemu-img: the format is named in every call, resources and time are limited, and few run at once.

The format must never be guessed: a guest that writes an image's header into its raw disk would choose what is opened next. The limits are set by
the program `prlimit`, not between fork and exec, because gRPC's threads do not survive a fork that runs Python.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum

import structlog

from nodeagent.ports import StorageUnavailable

COPY_TIMEOUT_S = 280.0
"""Below the deadline of the call that asks for it (300 s)."""

COPIES_MAX = 2
"""Image copies at once: more only move the disk's heads."""

CPU_S = 240
"""A crafted image must not burn a CPU for ever; an honest compressed one of some 20 GiB needs this much."""
ADDRESS_SPACE_BYTES = 2 << 30
OUTPUT_MAX = 2000

log = structlog.get_logger(__name__)


class ImageFormat(StrEnum):
    """The formats that volumes have."""

    QCOW2 = "qcow2"
    RAW = "raw"


class NoSpace(Exception):
    """The file system is full."""


class QemuImgFailed(Exception):
    """It ended with an error; what it said is in the log."""


class QemuImg:
    """qemu-img of one host. Paths are made by us, or `/proc/self/fd/<n>` with `n` among `descriptors`."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(COPIES_MAX)

    async def create(self, target: str, size_bytes: int, descriptors: Sequence[int]) -> None:
        """An empty qcow2 image. Raises NoSpace, QemuImgFailed, StorageUnavailable (too slow); likewise below."""
        await self._run(("create", "-q", "-f", "qcow2", target, str(size_bytes)), descriptors)

    async def copy(self, source: str, target: str, target_format: ImageFormat, descriptors: Sequence[int]) -> None:
        """A whole copy of a qcow2 image."""
        await self._run(("convert", "-q", "-f", "qcow2", "-O", target_format.value, source, target), descriptors)

    async def grow(self, target: str, image_format: ImageFormat, size_bytes: int, descriptors: Sequence[int]) -> None:
        await self._run(("resize", "-q", "-f", image_format.value, target, str(size_bytes)), descriptors)

    async def _run(self, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        limits = ("prlimit", f"--cpu={CPU_S}", f"--as={ADDRESS_SPACE_BYTES}", "--core=0", "--")
        async with self._turn:
            process = await asyncio.create_subprocess_exec(
                *limits,
                "qemu-img",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=tuple(descriptors),
            )
            try:
                async with asyncio.timeout(COPY_TIMEOUT_S):
                    output, _ = await process.communicate()
            except TimeoutError as err:
                raise StorageUnavailable("qemu-img did not end in time") from err
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode != 0:
            text = output[-OUTPUT_MAX:].decode(errors="replace")
            log.warning("qemu-img failed", command=arguments[0], output=text)
            raise NoSpace if "No space left" in text or "Disk quota exceeded" in text else QemuImgFailed
