"""The etcd that tests and the demo stand on: real members on loopback."""

import datetime
import ipaddress
import signal
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hostlerlab.etcd import EtcdCluster, Tls
from hostlerlab.processes import identify
from hostlerlab.shell import run, wait_for

pytestmark = pytest.mark.etcd
TIMEOUT_S = 30.0


def test_three_members_survive_one_and_take_it_back(tmp_path: Path) -> None:
    """Breaks when members do not form one cluster, a killed one cannot come back with its data, or stop leaves any."""
    with EtcdCluster(tmp_path / "etcd", 3) as cluster:
        etcdctl = ["etcdctl", "--endpoints", ",".join(cluster.client_urls)]
        run([*etcdctl, "put", "k", "v"])
        before = cluster.pid("e1")
        cluster.kill_member("e1")
        assert not cluster.healthy("e1")
        wait_for("the other two to go on", lambda: cluster.healthy("e2") and cluster.healthy("e3"), TIMEOUT_S)
        run([*etcdctl, "put", "k", "w"])
        assert cluster.start_member("e1") != before
        cluster.wait_healthy("e1")
        read = run(["etcdctl", "--endpoints", cluster.client_urls[0], "get", "--print-value-only", "k"])
        assert read.stdout.strip() == "w"
        cluster.signal_member("e3", signal.SIGSTOP)
        assert not cluster.healthy("e3")
        processes = [identify(cluster.pid(m.name)) for m in cluster.members]
    assert [p is not None and p.alive() for p in processes] == [False] * 3


def test_tls_refuses_a_client_without_certificate(tmp_path: Path) -> None:
    """Breaks when the TLS cluster answers anybody."""
    tls = _certificates(tmp_path)
    with EtcdCluster(tmp_path / "etcd", 1, tls=tls) as cluster:
        ctl = ["etcdctl", "--endpoints", cluster.client_urls[0], "--cacert", str(tls.ca), "--dial-timeout", "2s", "--command-timeout", "2s"]
        assert run([*ctl, "--cert", str(tls.client_cert), "--key", str(tls.client_key), "put", "k", "v"]).stdout.strip() == "OK"
        assert run([*ctl, "put", "k", "v"], check=False).returncode != 0


def test_member_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Breaks when a broken start is waited for until the deadline, or its reason is lost."""
    cluster = EtcdCluster(tmp_path / "etcd")
    (tmp_path / "etcd" / "e1").mkdir(parents=True)
    (tmp_path / "etcd" / "e1" / "member").write_text("not a directory")
    with pytest.raises(RuntimeError, match="not a directory"):
        cluster.start()
    cluster.stop()


def _certificates(folder: Path) -> Tls:
    """A certificate authority with one server and one client certificate."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("ca", ca_key, "ca", ca_key, authority=True)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        issued = _certificate(name, key, "ca", ca_key, authority=False)
        (folder / f"{name}.pem").write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(private)
    return Tls(folder / "ca.pem", folder / "server.pem", folder / "server.key", folder / "client.pem", folder / "client.key")


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
