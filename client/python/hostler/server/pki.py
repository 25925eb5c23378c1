"""The cluster's own certificate authority: pure functions over `cryptography`, and files written so that a crash leaves no half of one.

P-256 everywhere (small, fast, in every TLS 1.3 stack). The CA names its cluster in a URI, `spiffe://<cluster>`, signs end certificates only
(path length 0), and each end certificate carries exactly one URI, its principal's. Nodes and schedulers may serve and call, users only call;
a server's DNS name follows from its principal (`identity`), so extra hosts may never lie under `hostler.internal`, or a node could pass for
a scheduler. Keys are 0600 from their first byte. A CA is never overwritten: with its key every old certificate would be lost.

There is no revocation list: whoever removes a node also removes it from the cluster's state, and user certificates are short-lived.
"""

import contextlib
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostler.server.clock import Clock, SystemClock
from hostler.server.identity import DNS_SUFFIX, IdentityError, Principal, PrincipalKind, check_cluster_name, parse_only_principal

CA_DAYS = 3650
DEFAULT_DAYS = {PrincipalKind.NODE: 365, PrincipalKind.SCHEDULER: 365, PrincipalKind.USER: 90}
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates begin this long ago, for hosts whose clocks are behind."""

CERT_FILE, KEY_FILE, CA_FILE = "tls.crt", "tls.key", "ca.crt"
"""What a daemon or user needs, in one directory."""
CA_KEY_FILE = "ca.key"

_SYSTEM_CLOCK = SystemClock()


class PkiError(Exception):
    """It was not done; the text is one sentence with what to do."""


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The CA's certificate and its private key, which stays where certificates are issued."""

    cluster: str
    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self.key)


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """One principal's certificate, its new private key, and the CA to trust."""

    principal: Principal
    cert_pem: bytes
    key_pem: bytes
    ca_pem: bytes


@dataclass(frozen=True, slots=True)
class CertificateSummary:
    """What `hostler pki show` prints. `identity` is a principal's URI, or `spiffe://<cluster>` for a CA; times are UTC."""

    identity: str
    is_ca: bool
    hosts: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    serial: str
    sha256: str


def create_ca(cluster: str, *, days: int = CA_DAYS, clock: Clock = _SYSTEM_CLOCK) -> CertificateAuthority:
    """A new CA, in memory only. Raises PkiError on a bad cluster name."""
    try:
        check_cluster_name(cluster)
    except IdentityError as err:
        raise PkiError(str(err)) from err
    key, now, name = ec.generate_private_key(ec.SECP256R1()), clock.now(), _name(f"Hostler CA of {cluster}")
    usage = x509.KeyUsage(False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
    cert = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{cluster}")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateAuthority(cluster, cert, key)


def init_ca(directory: Path, cluster: str, *, clock: Clock = _SYSTEM_CLOCK) -> CertificateAuthority:
    """Create a CA and write `ca.crt` and `ca.key` to `directory` (made with mode 0700). Raises PkiError if there is one already."""
    ca = create_ca(cluster, clock=clock)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in (CA_KEY_FILE, CA_FILE):
        if (directory / file).exists():
            raise PkiError(f"{directory / file} exists; a CA is never overwritten. Choose another directory.")
    try:
        # The key first: a certificate without its key would look like a CA. Both fail if somebody else was faster.
        _write_new(directory / CA_KEY_FILE, ca.key_pem, 0o600)
        _write_new(directory / CA_FILE, ca.cert_pem, 0o644)
    except FileExistsError as err:
        raise PkiError(f"{directory} was given a CA by somebody else in this moment; use that one.") from err
    return ca


def load_ca(directory: Path) -> CertificateAuthority:
    """The CA that `init_ca` wrote. Raises PkiError."""
    try:
        cert = x509.load_pem_x509_certificate((directory / CA_FILE).read_bytes())
        key = serialization.load_pem_private_key((directory / CA_KEY_FILE).read_bytes(), password=None)
    except OSError as err:
        raise PkiError(f"{err.filename}: {err.strerror}; run hostler pki init first.") from err
    except ValueError as err:
        raise PkiError(f"{directory}: {CA_FILE} or {CA_KEY_FILE} cannot be read as PEM.") from err
    uris = _uris(cert)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key() or len(uris) != 1:
        raise PkiError(f"{directory}: {CA_FILE} and {CA_KEY_FILE} do not belong together, or are not a Hostler CA.")
    return CertificateAuthority(uris[0].removeprefix("spiffe://"), cert, key)


def issue(
    ca: CertificateAuthority, principal: Principal, *, hosts: Sequence[str] = (), days: int | None = None, clock: Clock = _SYSTEM_CLOCK
) -> IssuedCertificate:
    """A certificate and a new key for `principal`. `hosts`: extra DNS names and IP addresses of a server. Never outlives the CA.

    Raises PkiError: another cluster's principal, hosts that may not be there, days out of range, an expired CA.
    """
    if principal.cluster != ca.cluster:
        raise PkiError(f"This CA is of cluster {ca.cluster}, not {principal.cluster}.")
    serves = principal.kind is not PrincipalKind.USER
    if hosts and not serves:
        raise PkiError("A user's certificate has no hosts, because it serves nothing.")
    days = DEFAULT_DAYS[principal.kind] if days is None else days
    if not 1 <= days <= CA_DAYS:
        raise PkiError(f"A certificate is valid for 1 to {CA_DAYS} days.")
    key, now = ec.generate_private_key(ec.SECP256R1()), clock.now()
    not_after = min(now + timedelta(days=days), ca.cert.not_valid_after_utc)
    if not_after <= now:
        raise PkiError(f"The CA itself expired on {ca.cert.not_valid_after_utc:%Y-%m-%d}; make a new one and issue every certificate anew.")
    usage = x509.KeyUsage(True, False, False, False, False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
    cert = (
        _builder(_name(str(principal)), ca.cert.subject, key.public_key(), now, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(_sans(principal, hosts)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    return IssuedCertificate(principal, cert.public_bytes(serialization.Encoding.PEM), _key_pem(key), ca.cert_pem)


def write(issued: IssuedCertificate, directory: Path) -> None:
    """Put `tls.key`, `tls.crt` and `ca.crt` into `directory` (made with mode 0700), replacing older ones, each file at once.

    The certificate comes last: a daemon that reloads in between sees a key that does not belong to its certificate and keeps the old pair.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(directory / KEY_FILE, issued.key_pem, 0o600)
    _replace(directory / CA_FILE, issued.ca_pem, 0o644)
    _replace(directory / CERT_FILE, issued.cert_pem, 0o644)


def describe(cert_path: Path) -> CertificateSummary:
    """What the (first) certificate in a file says. Raises PkiError."""
    try:
        cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
    except OSError as err:
        raise PkiError(f"{cert_path}: {err.strerror}.") from err
    except ValueError as err:
        raise PkiError(f"{cert_path}: not a PEM certificate.") from err
    return CertificateSummary(
        identity=", ".join(_uris(cert)),
        is_ca=_is_ca(cert),
        hosts=tuple(_hosts(cert)),
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
        serial=f"{cert.serial_number:x}",
        sha256=cert.fingerprint(hashes.SHA256()).hex(),
    )


def principal_of(cert: x509.Certificate) -> Principal:
    """Whose certificate it is. Raises IdentityError."""
    return parse_only_principal(_uris(cert))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    start = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return start.serial_number(x509.random_serial_number()).not_valid_before(now - CLOCK_SKEW).not_valid_after(not_after)


def _name(common_name: str) -> x509.Name:
    # For people only; X.509 allows 64 characters. What counts is the URI.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _sans(principal: Principal, hosts: Sequence[str]) -> list[x509.GeneralName]:
    own: list[x509.GeneralName] = [x509.UniformResourceIdentifier(principal.uri)]
    if principal.dns_name is not None:
        own.append(x509.DNSName(principal.dns_name))
    return own + [_host(host) for host in hosts]


def _host(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    name = host.lower()
    if _HOST_NAME.fullmatch(name) is None or len(name) > 253:
        raise PkiError(f"{host!r} is neither an IP address nor a host name.")
    if name == DNS_SUFFIX or name.endswith(f".{DNS_SUFFIX}"):
        raise PkiError(f"{host}: names under {DNS_SUFFIX} follow from the identity and cannot be added.")
    return x509.DNSName(name)


_HOST_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")


def _alternative_names(cert: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _uris(cert: x509.Certificate) -> list[str]:
    return _alternative_names(cert).get_values_for_type(x509.UniformResourceIdentifier)


def _hosts(cert: x509.Certificate) -> list[str]:
    names = _alternative_names(cert)
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _is_ca(cert: x509.Certificate) -> bool:
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that at any moment the path holds all of the old content or all of the new."""
    temporary = _written_beside(path, content, mode)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink()
        raise
    _sync_directory(path.parent)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Like `_replace`, but raises FileExistsError if there is such a file."""
    temporary = _written_beside(path, content, mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def _written_beside(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    return temporary


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
