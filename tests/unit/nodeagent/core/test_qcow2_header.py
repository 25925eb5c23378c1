"""An image is judged by its header before any tool opens it: what must be refused, and that real images are not."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.core.qcow2_header import COMPRESSION, DIRTY, EXTERNAL_DATA, HEADER_BYTES, MAGIC, Unusable, Usable, inspect

GIB = 1 << 30


def header(
    *,
    magic: int = MAGIC,
    version: int = 3,
    backing_offset: int = 0,
    backing_size: int = 0,
    cluster_bits: int = 16,
    size: int = GIB,
    crypt: int = 0,
    l1: int = 2,
    refcount_clusters: int = 1,
    features: int = 0,
) -> bytes:
    """The first bytes of an image, with every field that matters."""
    fixed = struct.pack(
        ">IIQIIQIIQQIIQ",
        magic,
        version,
        backing_offset,
        backing_size,
        cluster_bits,
        size,
        crypt,
        l1,
        0x30000,
        0x10000,
        refcount_clusters,
        0,
        0,
    )
    return fixed + struct.pack(">QQQII", features, 0, 0, 4, HEADER_BYTES)


def reason(head: bytes) -> str:
    verdict = inspect(head)
    assert isinstance(verdict, Unusable)
    return verdict.reason


def test_a_plain_image_is_usable_and_its_size_is_read() -> None:
    """Refusing everything would be safe and useless."""
    assert inspect(header()) == Usable(GIB)
    assert inspect(header(version=2)[:72]) == Usable(GIB)
    assert inspect(header(features=DIRTY | COMPRESSION)) == Usable(GIB)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (header(backing_offset=0x200, backing_size=11), "backing file"),
        (header(backing_offset=1), "backing file"),
        (header(version=2, backing_offset=0x200)[:72], "backing file"),
        (header(features=EXTERNAL_DATA), "another file"),
        (header(features=1 << 1), "corrupt"),
        (header(features=1 << 40), "not known"),
        (header(crypt=1), "encrypted"),
        (header(crypt=2), "encrypted"),
        (header(size=0), "size"),
        (header(size=1 << 62), "size"),
        (header(size=(1 << 64) - 1), "size"),
        (header(cluster_bits=8), "cluster size"),
        (header(cluster_bits=22), "cluster size"),
        (header(cluster_bits=0xFFFFFFFF), "cluster size"),
        (header(l1=0xFFFFFFFF), "tables"),
        (header(refcount_clusters=0xFFFFFFFF), "tables"),
        (header(version=1), "version"),
        (header(version=4), "version"),
        (header()[:103], "cut off"),
        (header(magic=0x51464900), "not a qcow2"),
        (b"", "not a qcow2"),
        (b"QFI\xfb", "not a qcow2"),
        (b"KDMV" + bytes(200), "not a qcow2"),
        (b"# Disk DescriptorFile\nversion=1\n" + bytes(200), "not a qcow2"),
    ],
)
def test_what_names_other_files_or_is_not_sane_is_refused(head: bytes, word: str) -> None:
    """Each of these made some platform read a file of the host, or its memory run out."""
    assert word in reason(head)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_inspector(tail: bytes) -> None:
    """It reads what strangers upload: every input has a verdict."""
    assert isinstance(inspect(header()[:8] + tail), Usable | Unusable)
    assert isinstance(inspect(tail), Usable | Unusable)


@pytest.mark.parametrize(
    "options", ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "extended_l2=on,cluster_size=128k"]
)
@pytest.mark.parametrize("size", ["1M", "10G", "4T"])
def test_images_made_by_qemu_img_are_usable(tmp_path: Path, options: str, size: str) -> None:
    """The limits must not be tighter than what the tool itself makes."""
    if options == "cluster_size=512" and size == "4T":
        size = "64G"  # qemu-img's own limit for so small a cluster
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(image), size], check=True, timeout=60)
    unit = {"M": 1 << 20, "G": GIB, "T": 1 << 40}[size[-1]]
    assert inspect(image.read_bytes()[:HEADER_BYTES]) == Usable(int(size[:-1]) * unit)


def test_an_image_that_was_grown_is_usable(tmp_path: Path) -> None:
    """Growing makes the first table larger than a fresh image's."""
    image = tmp_path / "image.qcow2"
    for command in (["create", "-q", "-f", "qcow2", str(image), "1G"], ["resize", "-q", "-f", "qcow2", str(image), "700G"]):
        subprocess.run(["qemu-img", *command], check=True, timeout=60)
    assert inspect(image.read_bytes()[:HEADER_BYTES]) == Usable(700 * GIB)


def test_an_image_with_a_backing_file_made_by_qemu_img_is_refused(tmp_path: Path) -> None:
    """The real thing, not only our idea of it."""
    secret, image = tmp_path / "secret", tmp_path / "image.qcow2"
    secret.write_bytes(bytes(1 << 20))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(image)], check=True, timeout=60)
    assert "backing file" in reason(image.read_bytes()[:HEADER_BYTES])


def test_an_image_with_a_data_file_made_by_qemu_img_is_refused(tmp_path: Path) -> None:
    """CVE-2024-32498's way in."""
    image = tmp_path / "image.qcow2"
    options = f"data_file={tmp_path / 'data'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(image), "1M"], check=True, timeout=60)
    assert "another file" in reason(image.read_bytes()[:HEADER_BYTES])
