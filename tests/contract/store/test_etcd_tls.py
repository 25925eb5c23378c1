"""The scheduler's way to etcd is mutual TLS: several members behind one name, no plain text, nobody without a certificate."""

import asyncio
import datetime
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hostlerlab.etcd import EtcdCluster, Tls
from scheduler.adapters.etcd_channels import EtcdConfig, TlsFiles
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.ports import Committed, OutcomeUnknown, Put, StoreUnavailable
from tests.contract.store.subject import etcd_cluster

pytestmark = pytest.mark.etcd

NAME = "etcd.example"


def certificate(folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> tuple[Path, Path]:
    """A certificate (self-signed CA without `issuer`) and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    )
    signed = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    cert_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return cert_file, key_file


def authority(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert_file, key_file = certificate(folder, name, None)
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(cert_file.read_bytes()), key


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("certs")
    ours = authority(folder, "ca")
    return Tls(folder / "ca.pem", *certificate(folder, "server", ours), *certificate(folder, "scheduler", ours))


@pytest.fixture(scope="module")
def tls_cluster(tmp_path_factory: pytest.TempPathFactory, tls_files: Tls) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("tls"), 3, tls=tls_files) as cluster:
        yield cluster


async def outcome(endpoints: tuple[str, ...], tls: TlsFiles | None) -> object:
    store = EtcdStore(EtcdConfig(endpoints, tls))
    try:
        async with asyncio.timeout(10):
            return await store.txn([], [Put("tls", b"")])
    except (StoreUnavailable, OutcomeUnknown) as error:
        return error  # in TLS 1.3 the server refuses a client's certificate when the client may have sent already: unknown, not undone
    finally:
        await store.close()


async def test_client_certificate_opens_every_member(tls_cluster: EtcdCluster, tls_files: Tls) -> None:
    """Each member is checked against the one name that all their certificates carry, or without one against its own address."""
    files = TlsFiles(tls_files.ca, tls_files.client_cert, tls_files.client_key, NAME)
    assert isinstance(await outcome(tls_cluster.endpoints, files), Committed)
    own = TlsFiles(tls_files.ca, tls_files.client_cert, tls_files.client_key)
    assert isinstance(await outcome(tls_cluster.endpoints, own), Committed)
    for endpoint in tls_cluster.endpoints:
        assert isinstance(await outcome((endpoint,), own), Committed)


@pytest.mark.parametrize("case", ["plain text", "wrong name", "foreign client", "foreign server"])
async def test_everything_else_stays_outside(tls_cluster: EtcdCluster, tls_files: Tls, tmp_path: Path, case: str) -> None:
    """Each of these would hand the cluster's state to the wrong side."""
    foreign = certificate(tmp_path, "stranger", authority(tmp_path, "other-ca"))
    files = {
        "plain text": None,
        "wrong name": TlsFiles(tls_files.ca, tls_files.client_cert, tls_files.client_key, "elsewhere.example"),
        "foreign client": TlsFiles(tls_files.ca, *foreign, NAME),
        "foreign server": TlsFiles(tmp_path / "other-ca.pem", tls_files.client_cert, tls_files.client_key, NAME),
    }[case]
    assert isinstance(await outcome(tls_cluster.endpoints, files), StoreUnavailable | OutcomeUnknown)
