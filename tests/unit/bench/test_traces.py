"""The readers of the traces, on files of a few lines: a VM of another size or lifetime than the trace's, and every figure is of another trace."""

import gzip
from pathlib import Path

import pytest

from tests.bench.placement.traces import VARIABLE, TracesMissing, TraceVm, azure, directory, episode_starts, huawei

AZURE = """t_s,batch,vcpu,mem_gib,dur_lo_s,dur_hi_s,censored
600,0,1,0.75,300,300,0
600,0,2,3.5,7200,10500,0
900,1,8,56,86400,172500,1
"""
HUAWEI = """vmid,cpu,mem,at,lt
0,1,2,0.0,194.0
1,64,128,7.9,2.9
"""


def written(path: Path, text: str) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path.parent


def test_an_azure_vm_lives_for_the_middle_of_its_bin(tmp_path: Path) -> None:
    """Lifetimes at one edge of their bins move the peak by whole hosts; who still ran at the end of the split never leaves."""
    assert azure(written(tmp_path / "azure2017_v1_dev.csv.gz", AZURE), "dev") == (
        TraceVm(0, 600, 450, 1000, 768),
        TraceVm(1, 600, 9000, 2000, 3584),
        TraceVm(2, 900, None, 8000, 57344),
    )


def test_huaweis_times_are_whole_seconds(tmp_path: Path) -> None:
    """SPANE cuts fractions off, and does not round them."""
    assert huawei(written(tmp_path / "huawei_east1_lt.csv.gz", HUAWEI)) == (
        TraceVm(0, 0, 194, 1000, 2048),
        TraceVm(1, 7, 2, 64_000, 131_072),
    )


def test_an_amount_that_is_no_whole_number_of_mib_is_told(tmp_path: Path) -> None:
    """Amounts that are rounded when a VM comes and leave a rest when it goes."""
    folder = written(tmp_path / "huawei_east1_lt.csv.gz", HUAWEI.replace("1,2,0.0", "1,0.0001,0.0"))
    with pytest.raises(ValueError, match=r"0\.0001 GiB"):
        huawei(folder)


def test_an_episode_that_is_listed_twice_counts_twice(tmp_path: Path) -> None:
    """A trimmed mean over fewer episodes than the published one."""
    (tmp_path / "starts.txt").write_text("70\n5\n70\n")
    assert episode_starts(tmp_path / "starts.txt") == (70, 5, 70)


def test_missing_traces_are_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that skips what it cannot read, and looks as if it had been passed."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TracesMissing, match="HOSTLER_TRACES is not set"):
        directory()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(TracesMissing, match="nowhere"):
        directory()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert directory() == tmp_path
    for read in (lambda: azure(tmp_path, "test"), lambda: huawei(tmp_path), lambda: episode_starts(tmp_path / "starts.txt")):
        with pytest.raises(TracesMissing, match=r"(azure2017_v1_test\.csv\.gz|huawei_east1_lt\.csv\.gz|starts\.txt) is not in"):
            read()
