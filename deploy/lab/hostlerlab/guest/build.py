"""Builds the lab's guest images from Debian packages: `python -m hostlerlab.guest.build [OUT] [--refresh]`.

Decides how a disk comes to boot by itself with a BIOS, so that the lab's VMs need nothing from the host but the image:
the kernel out of the `linux-image-cloud-amd64` package (downloaded and read, never installed), an initramfs of our own
with the few modules that are needed, `busybox udhcpc` and `init.c` as PID 1, and a one-sector boot loader. The result is cached
by a digest of everything that goes in; a second call reads a few small files. The kernel package downloaded first stays
in use until `--refresh`, so that images stay the same and no network is needed again.
"""

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostlerlab.guest import layout

APT_PACKAGES = ("gcc", "libc6-dev", "binutils", "busybox-static", "qemu-utils")
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
DEFAULT_OUT = Path("build/guest")

# Loaded in this order, each after what it depends on.
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "button", "evdev", "virtio_balloon")

# hpet=disable: with an HPET the kernel emulates the CMOS interrupt in steps of 16 ms, too coarse for the pause witness.
# clocksource=acpi_pm: its rate is exact, that of the TSC is measured at boot and wrong on a busy host.
# idle=halt: mwait would spin on an emulated CPU. memhp: hot-plugged memory is used without a udev.
# swiotlb=noforce: a VM that can grow above 4 GiB would lose 32 MiB to bounce buffers that virtio does not need.
# The others leave out what this guest has no use for and what takes time under emulation.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=1 rdinit=/init hpet=disable clocksource=acpi_pm idle=halt memhp_default_state=online "
    "tsc=reliable no_timer_check nokaslr mitigations=off ipv6.disable=1 8250.nr_uarts=1 i8042.noaux audit=0 "
    "swiotlb=noforce cryptomgr.notests lsm=capability rcupdate.rcu_expedited=1 noreplace-smp "
    "initcall_blacklist=load_system_certificate_list"
)

# Linux/x86 boot protocol: fields of the setup header, offsets in the first sectors of bzImage.
_SETUP_SECTS, _TYPE_OF_LOADER, _LOADFLAGS = 0x1F1, 0x210, 0x211
_RAMDISK_IMAGE, _RAMDISK_SIZE, _HEAP_END_PTR, _CMD_LINE_PTR = 0x218, 0x21C, 0x224, 0x228
_PREF_ADDRESS, _INIT_SIZE = 0x258, 0x260
_CAN_USE_HEAP = 0x80
_SETUP_ADDRESS = 0x10000
_COMMAND_LINE_PLACE = 0xE000  # after the setup code's heap and stack, within its 64 KiB segment
_COMMAND_LINE_BYTES = 2048
_PAGE_BYTES = 4096

_SOURCES = Path(__file__).parent


class MissingPackage(Exception):
    """A Debian package that the build needs is not there; the message names the command that brings it."""


@dataclass(frozen=True, slots=True)
class GuestImages:
    """Where the built images are. `digest` names their content; copy or overlay them, never run a VM on them directly."""

    linux: Path
    bootsector: Path
    bootsector_raw: Path
    kernel_package: str
    digest: str


def build(out_dir: Path = DEFAULT_OUT, *, refresh: bool = False) -> GuestImages:
    """Builds the images in `out_dir`, or returns those that are there already when nothing has changed.

    Safe to call from several processes at once. Raises MissingPackage, or CalledProcessError when a tool fails.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with _locked(out_dir / ".lock"):
        kernel = _kernel_package(out_dir / "kernel", refresh=refresh)
        digest = _digest(kernel)
        images = GuestImages(
            linux=out_dir / "guest.qcow2",
            bootsector=out_dir / "bootsector.qcow2",
            bootsector_raw=out_dir / "bootsector.raw",
            kernel_package=kernel.name,
            digest=digest,
        )
        stamp = out_dir / "guest.json"
        if _stamped(stamp) != digest or not all(p.exists() for p in (images.linux, images.bootsector, images.bootsector_raw)):
            stamp.unlink(missing_ok=True)
            _build_all(images, kernel, out_dir)
            stamp.write_text(json.dumps({"digest": digest, "kernel_package": kernel.name}) + "\n")
        return images


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stamped(stamp: Path) -> str | None:
    if not stamp.exists():
        return None
    digest = json.loads(stamp.read_text()).get("digest")
    return digest if isinstance(digest, str) else None


def _digest(kernel: Path) -> str:
    hasher = hashlib.sha256(kernel.name.encode())
    for path in (*sorted(p for p in _SOURCES.iterdir() if p.suffix in {".c", ".S", ".py"}), _busybox()):
        content = path.read_bytes()
        hasher.update(f"{path.name} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.hexdigest()


# ---- what comes from Debian ----


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MissingPackage(f"{name} is missing: apt-get install --no-install-recommends {package}")
    return path


def _busybox() -> Path:
    path = Path(_tool("busybox", "busybox-static"))
    if b"/lib64/ld-linux" in path.read_bytes():
        raise MissingPackage("busybox is not static: apt-get install --no-install-recommends busybox-static")
    return path


def _kernel_package(folder: Path, *, refresh: bool) -> Path:
    folder.mkdir(exist_ok=True)
    found = sorted(folder.glob("linux-image-*.deb"))
    if found and not refresh:
        return found[-1]
    _tool("apt-get", "apt")
    depends = subprocess.run(
        ["apt-cache", "depends", "--no-recommends", KERNEL_METAPACKAGE], capture_output=True, text=True, check=False
    ).stdout
    names = [line.split()[-1] for line in depends.splitlines() if line.strip().startswith("Depends: linux-image-")]
    if not names:
        raise MissingPackage(f"no package {KERNEL_METAPACKAGE} is known here: apt-get update")
    _progress(f"downloading {names[0]}")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        subprocess.run(["apt-get", "download", "-qq", names[0]], cwd=work, check=True, capture_output=True)
        (package,) = Path(work).glob("*.deb")
        for old in found:
            old.unlink()
        return package.rename(folder / package.name)


def _read_kernel(package: Path) -> tuple[bytes, dict[str, bytes]]:
    """The bzImage and all modules by name, read from the package without unpacking it to disk."""
    tar = subprocess.run([_tool("dpkg-deb", "dpkg"), "--fsys-tarfile", package], check=True, capture_output=True).stdout
    image = b""
    modules = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            name = Path(member.name).name
            if not member.isfile() or not (name.startswith("vmlinuz-") or name.endswith(".ko")):
                continue
            file = archive.extractfile(member)
            if file is None:
                raise ValueError(f"{package.name} has no content for {member.name}")
            if name.endswith(".ko"):
                modules[name.removesuffix(".ko")] = file.read()
            else:
                image = file.read()
    if image[0x202:0x206] != b"HdrS":
        raise ValueError(f"{package.name} has no kernel image")
    return image, modules


def _with_dependencies(wanted: Sequence[str], modules: Mapping[str, bytes]) -> list[str]:
    """Names in loading order. A module not in the package is built into the kernel."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in modules:
            return
        depends = modules[name].split(b"\0depends=", 1)[1].split(b"\0", 1)[0].decode()
        for dependency in filter(None, depends.split(",")):
            visit(dependency)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


# ---- the parts ----


def _build_all(images: GuestImages, kernel: Path, out_dir: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out_dir) as name:
        work = Path(name)
        _progress("compiling init")
        init = _compile_init(work)
        _progress(f"reading {kernel.name}")
        bz_image, modules = _read_kernel(kernel)
        disk = _disk(bz_image, _initramfs(init, modules), work)
        _progress("writing guest.qcow2")
        _to_qcow2(disk, images.linux, work)
        _progress("writing bootsector.qcow2")
        sector = _assemble("bootsector.S", {}, work)
        raw = sector.ljust(layout.BOOTSECTOR_DISK_BYTES, b"\0")
        _replace(images.bootsector_raw, raw, work)
        _to_qcow2(raw, images.bootsector, work)


def _compile_init(work: Path) -> bytes:
    out = work / "init"
    facts = {
        "STREAM_PORT": layout.STREAM_PORT,
        "ASK_PORT": layout.ASK_PORT,
        "AREA_OFFSET": layout.AREA_OFFSET,
        "SLOT_BYTES": layout.SLOT_BYTES,
        "SLOTS": layout.SLOTS,
    }
    defines = [f"-D{name}={value}" for name, value in facts.items()]
    command = [_tool("gcc", "gcc libc6-dev"), "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-pthread", *defines]
    _run([*command, "-o", str(out), str(_SOURCES / "init.c")])
    return out.read_bytes()


def _assemble(source: str, symbols: Mapping[str, int], work: Path) -> bytes:
    obj, out = work / f"{source}.o", work / f"{source}.bin"
    defsym = [f"--defsym={name}={value}" for name, value in symbols.items()]
    _run([_tool("as", "binutils"), "--32", *defsym, "-o", str(obj), str(_SOURCES / source)])
    flat = ["-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-e", "_start"]
    _run([_tool("ld", "binutils"), *flat, "-o", str(out), str(obj)])
    sector = out.read_bytes()
    if len(sector) != layout.SECTOR_BYTES or not sector.endswith(b"\x55\xaa"):
        raise ValueError(f"{source} assembles to {len(sector)} bytes, not to one boot sector")
    return sector


def _initramfs(init: bytes, modules: Mapping[str, bytes]) -> bytes:
    """A cpio archive in `newc` format, not compressed: the kernel would need longer to unpack than the BIOS to read."""
    order = _with_dependencies(MODULES, modules)
    folder, executable, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    entries = [(name, folder, b"") for name in ("dev", "proc", "sys", "modules")]
    entries += [("init", executable, init), ("busybox", executable, _busybox().read_bytes())]
    entries += [("modules/order", file, "".join(f"{name}.ko\n" for name in order).encode())]
    entries += [(f"modules/{name}.ko", file, modules[name]) for name in order]
    archive = bytearray()
    for inode, (name, mode, content) in enumerate(entries, 1):
        archive += _cpio_entry(inode, name, mode, content)
    return bytes(archive + _cpio_entry(0, "TRAILER!!!", 0, b""))


def _cpio_entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(header, 4) + _padded(content, 4)


def _disk(bz_image: bytes, initramfs: bytes, work: Path) -> bytes:
    """The whole disk: boot sector, empty counter ring, setup code with command line, kernel, initramfs."""
    setup_bytes = (bz_image[_SETUP_SECTS] + 1) * layout.SECTOR_BYTES
    pref_address, init_size = struct.unpack_from("<QI", bz_image, _PREF_ADDRESS)
    # The kernel unpacks itself into [pref_address, pref_address + init_size); the initramfs is right behind it.
    initrd_address = -(-(pref_address + init_size) // _PAGE_BYTES) * _PAGE_BYTES
    setup = _padded(_setup(bz_image[:setup_bytes], initrd_address, len(initramfs)), _PAGE_BYTES)
    kernel = _padded(bz_image[setup_bytes:], _PAGE_BYTES)
    initrd = _padded(initramfs, _PAGE_BYTES)
    offset = layout.SETUP_OFFSET
    symbols = {"INITRD_ADDRESS": initrd_address}
    for name, part in (("SETUP", setup), ("KERNEL", kernel), ("INITRD", initrd)):
        symbols[f"{name}_LBA"] = offset // layout.SECTOR_BYTES
        symbols[f"{name}_SECTORS"] = len(part) // layout.SECTOR_BYTES
        offset += len(part)
    if offset > layout.DISK_BYTES:
        raise ValueError(f"kernel and initramfs need {offset} bytes, the disk has {layout.DISK_BYTES}")
    head = _assemble("loader.S", symbols, work).ljust(layout.SETUP_OFFSET, b"\0")
    return (head + setup + kernel + initrd).ljust(layout.DISK_BYTES, b"\0")


def _setup(code: bytes, initrd_address: int, initrd_bytes: int) -> bytes:
    """The kernel's setup code with the fields that a boot loader has to fill in, and the command line behind it."""
    command_line = COMMAND_LINE.encode() + b"\0"
    if len(code) > _COMMAND_LINE_PLACE // 2 or len(command_line) > _COMMAND_LINE_BYTES:
        raise ValueError("setup code or command line too long")
    setup = bytearray(code.ljust(_COMMAND_LINE_PLACE, b"\0") + command_line)
    setup[_TYPE_OF_LOADER] = 0xFF
    setup[_LOADFLAGS] |= _CAN_USE_HEAP
    struct.pack_into("<II", setup, _RAMDISK_IMAGE, initrd_address, initrd_bytes)
    struct.pack_into("<H", setup, _HEAP_END_PTR, _COMMAND_LINE_PLACE - 0x200)
    struct.pack_into("<I", setup, _CMD_LINE_PTR, _SETUP_ADDRESS + _COMMAND_LINE_PLACE)
    return bytes(setup)


def _padded(content: bytes, unit: int) -> bytes:
    return content + b"\0" * (-len(content) % unit)


def _to_qcow2(disk: bytes, target: Path, work: Path) -> None:
    raw, out = work / "disk.raw", work / target.name
    raw.write_bytes(disk)
    _run([_tool("qemu-img", "qemu-utils"), "convert", "-f", "raw", "-O", "qcow2", str(raw), str(out)])
    out.rename(target)


def _replace(target: Path, content: bytes, work: Path) -> None:
    part = work / target.name
    part.write_bytes(content)
    part.rename(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()


def _progress(text: str) -> None:
    print(f"guest: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Command line; prints the images' paths."""
    parser = argparse.ArgumentParser(prog="hostlerlab.guest.build", description="Build the lab's guest images.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--refresh", action="store_true", help="download the newest kernel package")
    arguments = parser.parse_args()
    try:
        images = build(arguments.out, refresh=arguments.refresh)
    except MissingPackage as missing:
        print(f"guest: {missing}", file=sys.stderr)
        return 1
    for path in (images.linux, images.bootsector, images.bootsector_raw):
        print(f"{path} {path.stat().st_size / (1 << 20):.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
