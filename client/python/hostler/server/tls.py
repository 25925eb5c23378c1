"""TLS with both ends proven: certificate files, gRPC credentials that follow renewed files, and contexts for raw asyncio streams.

A server always demands a client certificate of the cluster's CA. A client verifies the server by its DNS name under `hostler.internal`
(`identity`), set as the override for the address it dials, so that certificates need not know addresses. Files are looked at again at every
handshake (a `stat` each) and read again when one changed; a new set that is broken or half written is logged and the old one kept, so a
renewal can never take a daemon off the air. A client's channel keeps the files it was made with: make a new channel after a renewal.

Raw streams use TLS 1.3 only. gRPC's Python API cannot set a lowest version; its own is TLS 1.2.
"""

import asyncio
import os
import ssl
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hostler.server import pki
from hostler.server.clock import Clock
from hostler.server.identity import IdentityError, Principal, parse_only_principal
from hostler.server.startup import StartupError

log = structlog.get_logger(__name__)

MAX_PEM_BYTES = 1 << 20


class TlsError(StartupError):
    """The certificate files cannot be used."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where this daemon's or user's certificate, its key and the CA to trust are."""

    cert: Path
    key: Path
    ca: Path

    @classmethod
    def in_directory(cls, directory: Path) -> "TlsFiles":
        """The layout that `pki.write` makes."""
        return cls(directory / pki.CERT_FILE, directory / pki.KEY_FILE, directory / pki.CA_FILE)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Files that were read and fit together. `principal` is who we are with this certificate."""

    cert_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    principal: Principal


def valid_until(material: TlsMaterial) -> datetime:
    """The end of our certificate, UTC."""
    return x509.load_pem_x509_certificate(material.cert_pem).not_valid_after_utc


def load(files: TlsFiles, *, clock: Clock) -> TlsMaterial:
    """Read and check: readable, key private, certificate and key a pair, one identity, valid now. Raises TlsError."""
    cert_pem, key_pem, ca_pem = _read(files.cert), _read(files.key, private=True), _read(files.ca)
    try:
        cert = x509.load_pem_x509_certificate(cert_pem)
        x509.load_pem_x509_certificate(ca_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
        principal = pki.principal_of(cert)
    except IdentityError as err:
        raise TlsError(f"{files.cert}: {err}") from err
    except (ValueError, TypeError) as err:
        raise TlsError(f"{files.cert}, {files.key} or {files.ca}: not an unencrypted PEM file of its kind") from err
    if key.public_key() != cert.public_key():
        raise TlsError(f"{files.key} is not the key of {files.cert}")
    if not cert.not_valid_before_utc <= clock.now() <= cert.not_valid_after_utc:
        raise TlsError(
            f"{files.cert}: valid from {cert.not_valid_before_utc:%Y-%m-%d} to {cert.not_valid_after_utc:%Y-%m-%d}, not now;"
            " check the clock or issue a new one with hostler pki issue"
        )
    return TlsMaterial(cert_pem, key_pem, ca_pem, principal)


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            if private and os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                raise TlsError(f"{path}: everybody on this machine may read or change this private key; chmod 600 it and issue a new one")
            return file.read(MAX_PEM_BYTES)
    except OSError as err:
        raise TlsError(f"{path}: {err.strerror}") from err


class ServerTls:
    """A server's credentials, renewed by replacing its files. The identity must stay the same for the life of the process."""

    def __init__(self, files: TlsFiles, *, clock: Clock) -> None:
        """Raises TlsError."""
        self._files, self._clock = files, clock
        self._seen = self._fingerprint()
        self.material = load(files, clock=clock)

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`: client certificates are demanded and verified."""
        # gRPC documents None as an answer of the fetcher; its type stub does not.
        fetch: Any = self._fetch
        return grpc.dynamic_ssl_server_credentials(_configuration(self.material), fetch, require_client_authentication=True)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC in a thread of its own at every handshake; None: nothing new."""
        try:
            return self._reload()
        except TlsError as err:
            log.error("renewed certificate refused; keeping the old one", error=str(err))
            return None

    def _reload(self) -> grpc.ServerCertificateConfiguration | None:
        seen = self._fingerprint()
        if seen == self._seen:
            return None
        material = load(self._files, clock=self._clock)
        if material.principal != self.material.principal:
            raise TlsError(f"{self._files.cert}: is of {material.principal}, but this daemon is {self.material.principal}")
        self._seen, self.material = seen, material
        log.info("certificate renewed", identity=material.principal.uri)
        return _configuration(material)

    def _fingerprint(self) -> tuple[tuple[int, int], ...]:
        try:
            found = [os.stat(path) for path in (self._files.cert, self._files.key, self._files.ca)]
        except OSError as err:
            raise TlsError(f"{err.filename}: {err.strerror}") from err
        return tuple((entry.st_ino, entry.st_mtime_ns) for entry in found)


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key_pem, material.cert_pem)], root_certificates=material.ca_pem)


def channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    """A client's credentials; to be used with `server_name_options`."""
    return grpc.ssl_channel_credentials(material.ca_pem, material.key_pem, material.cert_pem)


def server_name_options(dns_name: str) -> tuple[tuple[str, str], ...]:
    """Channel options that verify the server by this name (`Principal.dns_name`) whatever address is dialled."""
    return (("grpc.ssl_target_name_override", dns_name),)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For `asyncio.start_server`: TLS 1.3, client certificate demanded; then check who it is with `peer_principal`. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _with_files(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For `asyncio.open_connection(..., server_hostname=<Principal.dns_name>)`: TLS 1.3, server name verified. Raises TlsError."""
    return _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def _with_files(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.cert, files.key)
        context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError) as err:
        raise TlsError(f"{files.cert}, {files.key} or {files.ca}: {err.strerror or 'cannot be used'}") from err
    return context


def peer_principal(transport: asyncio.BaseTransport) -> Principal:
    """Who is at the other end of a TLS stream made with the contexts above. Raises IdentityError."""
    ssl_object = transport.get_extra_info("ssl_object")
    cert = ssl_object.getpeercert() if ssl_object is not None else None
    if not cert:
        raise IdentityError("The other end showed no verified certificate.")
    return parse_only_principal([value for kind, value in cert.get("subjectAltName", ()) if kind == "URI"])
