"""What the trace files say: readers of real VM traces, and where the files are.

The files are not part of the project: `HOSTLER_TRACES` names the directory that has them, and a reader that misses it, or a file in it, says so by
name. The data has licences of its own (Azure Public Dataset: CC BY 4.0; Huawei-East-1: CC BY-NC 4.0), so nothing of it may be copied into here.

Azure 2017, `azure2017_v1_<split>.csv.gz`: VM requests of one region, derived by the authors of huaweicloud/trace_generation_rnn from Azure Public
Dataset V1 (Cortez et al., SOSP '17). Columns: `t_s, batch, vcpu, mem_gib, dur_lo_s, dur_hi_s, censored`. Arrivals are in bins of 300 s, in the
order of the trace; a lifetime is known as a bin, from `dur_lo_s` to `dur_hi_s`. The convention of every replay of it here: a VM lives for the
middle of its bin and half a bin of 300 s, (lo + hi) / 2 + 150 s; a censored one, which still ran when its split ended, never leaves.

Huawei-East-1, `huawei_east1_lt.csv.gz`: 30 days of one production cluster (huaweicloud/VM-placement-dataset, arXiv 2112.04785), as
ChanTinPing/SPANE has converted it: `vmid, cpu, mem (GiB), at (s), lt (s)`. SPANE cuts fractions of seconds off (schedgym/sched_env.py), and so does
the reader; the file has none. VMs that were never deleted are absent.

SPANE's episodes: a text file, one row number of the Huawei trace per line. A number that stands there twice is two episodes: the list of 150 has
one such.
"""

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "HOSTLER_TRACES"
MILLI = 1000
MIB_PER_GIB = 1024
HALF_BIN_S = 150


class TracesMissing(Exception):
    """There is no directory of traces, or not this file in it. The message is for the one who runs the benchmark."""


@dataclass(frozen=True, slots=True)
class TraceVm:
    """One VM of a trace. `row`: its place in the file, from 0. `lifetime_s` None: it never leaves."""

    row: int
    arrives_s: int
    lifetime_s: int | None
    cpu_milli: int
    memory_mib: int


def directory() -> Path:
    """Where the traces are, as the environment says."""
    told = os.environ.get(VARIABLE, "")
    if not told:
        raise TracesMissing(f"{VARIABLE} is not set: it names the directory with the VM traces, which are not part of the project")
    if not Path(told).is_dir():
        raise TracesMissing(f"{VARIABLE} is {told!r}, which is no directory")
    return Path(told)


def azure(folder: Path, split: str) -> tuple[TraceVm, ...]:
    """A split of Azure 2017, in the order of its arrivals."""
    return tuple(
        TraceVm(
            row=index,
            arrives_s=int(row["t_s"]),
            lifetime_s=None if row["censored"] == "1" else (int(row["dur_lo_s"]) + int(row["dur_hi_s"])) // 2 + HALF_BIN_S,
            cpu_milli=int(row["vcpu"]) * MILLI,
            memory_mib=_mib(row["mem_gib"]),
        )
        for index, row in enumerate(_rows(folder / f"azure2017_v1_{split}.csv.gz"))
    )


def huawei(folder: Path) -> tuple[TraceVm, ...]:
    """Huawei-East-1, in the order of its arrivals."""
    return tuple(
        TraceVm(index, int(float(row["at"])), int(float(row["lt"])), int(row["cpu"]) * MILLI, _mib(row["mem"]))
        for index, row in enumerate(_rows(folder / "huawei_east1_lt.csv.gz"))
    )


def episode_starts(path: Path) -> tuple[int, ...]:
    """The rows of Huawei-East-1 at which SPANE's episodes start."""
    return tuple(int(line) for line in _existing(path).read_text().split())


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(_existing(path), "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise TracesMissing(f"{path.name} is not in {path.parent}")
    return path


def _mib(gib: str) -> int:
    """Whole MiB, so that nothing is lost when amounts are added and taken away again."""
    exact = float(gib) * MIB_PER_GIB
    if exact != int(exact):
        raise ValueError(f"{gib} GiB is no whole number of MiB")
    return int(exact)
