"""Certificates: what they may say, how long they live, and that files are private, whole and never a CA overwritten."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest

from hostler.server import pki
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.manual_clock import EPOCH, ManualClock
from hostler.server.tls import TlsError, TlsFiles, load

NODE = Principal("lab", PrincipalKind.NODE, "n1")
SCHEDULER = Principal("lab", PrincipalKind.SCHEDULER, "s1")
USER = Principal("lab", PrincipalKind.USER, "alice")
CLOCK = ManualClock()


@pytest.fixture(scope="module")
def ca() -> pki.CertificateAuthority:
    return pki.create_ca("lab", clock=CLOCK)


def summary(issued: pki.IssuedCertificate, directory: Path) -> pki.CertificateSummary:
    pki.write(issued, directory)
    return pki.describe(directory / pki.CERT_FILE)


def test_a_ca_can_be_written_once_and_read_again(tmp_path: Path) -> None:
    made = pki.init_ca(tmp_path / "ca", "lab", clock=CLOCK)
    read = pki.load_ca(tmp_path / "ca")
    assert (read.cluster, read.cert) == ("lab", made.cert)
    before = (tmp_path / "ca" / "ca.key").read_bytes()
    with pytest.raises(pki.PkiError, match="never overwritten"):
        pki.init_ca(tmp_path / "ca", "lab", clock=CLOCK)
    assert (tmp_path / "ca" / "ca.key").read_bytes() == before
    assert pki.describe(tmp_path / "ca" / "ca.crt").is_ca


def test_half_a_ca_is_not_completed_with_a_new_half(tmp_path: Path) -> None:
    pki.init_ca(tmp_path, "lab", clock=CLOCK)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(pki.PkiError, match="never overwritten"):
        pki.init_ca(tmp_path, "lab", clock=CLOCK)
    with pytest.raises(pki.PkiError, match="No such file"):
        pki.load_ca(tmp_path)


def test_a_ca_whose_files_do_not_match_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pki.init_ca(tmp_path / name, "lab", clock=CLOCK)
    (tmp_path / "a" / "ca.key").replace(tmp_path / "b" / "ca.key")
    with pytest.raises(pki.PkiError, match="do not belong together"):
        pki.load_ca(tmp_path / "b")


def test_keys_are_private_and_no_temporary_file_stays(tmp_path: Path, ca: pki.CertificateAuthority) -> None:
    pki.init_ca(tmp_path / "ca", "lab", clock=CLOCK)
    pki.write(pki.issue(ca, NODE, clock=CLOCK), tmp_path / "n1")
    pki.write(pki.issue(ca, NODE, clock=CLOCK), tmp_path / "n1")
    for path in (tmp_path / "ca" / "ca.key", tmp_path / "n1" / "tls.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["ca.crt", "ca.crt", "ca.key", "tls.crt", "tls.key"]


def test_a_certificate_names_its_principal_once_and_its_hosts(tmp_path: Path, ca: pki.CertificateAuthority) -> None:
    node = summary(pki.issue(ca, NODE, hosts=["Host1.example.com", "10.0.0.7", "fd00::7"], clock=CLOCK), tmp_path / "n")
    assert (node.identity, node.is_ca) == ("spiffe://lab/node/n1", False)
    assert node.hosts == ("n1.node.hostler.internal", "host1.example.com", "10.0.0.7", "fd00::7")
    assert summary(pki.issue(ca, SCHEDULER, clock=CLOCK), tmp_path / "s").hosts == ("scheduler.hostler.internal",)
    assert summary(pki.issue(ca, USER, clock=CLOCK), tmp_path / "u").hosts == ()


def test_validity_begins_before_now_and_never_outlives_the_ca(tmp_path: Path, ca: pki.CertificateAuthority) -> None:
    node = summary(pki.issue(ca, NODE, days=10, clock=CLOCK), tmp_path / "a")
    assert (node.not_before, node.not_after) == (EPOCH - pki.CLOCK_SKEW, EPOCH + timedelta(days=10))
    late = ManualClock(EPOCH + timedelta(days=pki.CA_DAYS - 5))
    assert summary(pki.issue(ca, NODE, days=10, clock=late), tmp_path / "b").not_after == ca.cert.not_valid_after_utc
    with pytest.raises(pki.PkiError, match="CA itself"):
        pki.issue(ca, NODE, clock=ManualClock(EPOCH + timedelta(days=pki.CA_DAYS + 1)))


@pytest.mark.parametrize(
    "host", ["scheduler.hostler.internal", "n2.node.HOSTLER.internal", "hostler.internal", "*.example.com", "a b", "", "-x", "a..b"]
)
def test_a_node_cannot_be_given_a_name_that_is_not_its_own(ca: pki.CertificateAuthority, host: str) -> None:
    with pytest.raises(pki.PkiError):
        pki.issue(ca, NODE, hosts=[host], clock=CLOCK)


def test_what_makes_no_sense_is_refused(ca: pki.CertificateAuthority) -> None:
    with pytest.raises(pki.PkiError, match="of cluster lab"):
        pki.issue(ca, Principal("other", PrincipalKind.NODE, "n1"), clock=CLOCK)
    with pytest.raises(pki.PkiError, match="no hosts"):
        pki.issue(ca, USER, hosts=["a.example.com"], clock=CLOCK)
    for days in (0, -1, pki.CA_DAYS + 1):
        with pytest.raises(pki.PkiError, match="valid for"):
            pki.issue(ca, USER, days=days, clock=CLOCK)
    with pytest.raises(pki.PkiError):
        pki.create_ca("Not A Cluster", clock=CLOCK)


@pytest.fixture
def files(tmp_path: Path, ca: pki.CertificateAuthority) -> TlsFiles:
    pki.write(pki.issue(ca, NODE, clock=CLOCK), tmp_path)
    return TlsFiles.in_directory(tmp_path)


def test_a_daemon_knows_who_it_is_from_its_files(files: TlsFiles) -> None:
    assert load(files, clock=CLOCK).principal == NODE


def test_files_that_cannot_serve_are_refused_in_one_line(files: TlsFiles, ca: pki.CertificateAuthority, tmp_path: Path) -> None:
    def why(clock: ManualClock = CLOCK) -> str:
        with pytest.raises(TlsError) as caught:
            load(files, clock=clock)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "not now" in why(ManualClock(EPOCH + timedelta(days=400)))
    assert "not now" in why(ManualClock(EPOCH - timedelta(days=1)))
    files.key.chmod(0o644)
    assert "everybody on this machine" in why()
    files.key.chmod(0o600)
    files.key.write_bytes(pki.issue(ca, NODE, clock=CLOCK).key_pem)
    assert "is not the key of" in why()
    files.key.write_text("junk")
    assert "PEM" in why()
    files.key.unlink()
    assert "No such file" in why()
    pki.init_ca(tmp_path / "ca", "lab", clock=CLOCK)
    with pytest.raises(TlsError, match="spiffe"):
        load(TlsFiles(tmp_path / "ca" / "ca.crt", tmp_path / "ca" / "ca.key", tmp_path / "ca" / "ca.crt"), clock=CLOCK)
