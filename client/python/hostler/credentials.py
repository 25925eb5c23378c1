"""The certificate files of whoever connects: read once, refused at once when no server could take them, and judged when one did not.

OpenSSL judges, not we: our certificate is shown, in memory, to a server that trusts our authority, and what that server says is what a real one says.
(gRPC's servers close the connection without a word.) So the SDK needs no certificate parser.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostler.errors import InvalidRequest, Reason, Violation
from hostler.server.identity import IdentityError, Principal, parse_only_principal
from hostler.settings import Settings

MAX_FLIGHTS = 8
"""A handshake is over after three; more means that neither side goes on."""


@dataclass(frozen=True, slots=True)
class Pem:
    """What is in the files; they fit together."""

    cert: bytes
    key: bytes
    ca: bytes


@dataclass(frozen=True, slots=True)
class Judged:
    """`problem`: why no server of our authority takes our certificate, a sentence's end; empty: it would. `principal`: who we are, if it would."""

    problem: str = ""
    principal: Principal | None = None


def read(settings: Settings) -> Pem | None:
    """None without TLS. Raises InvalidRequest: a file cannot be read, is no PEM file of its kind, or the key is another certificate's."""
    files = _files(settings)
    if files is None:
        return None
    client_context(settings)
    cert, key, ca = (_bytes(path) for path in files)
    return Pem(cert, key, ca)


def client_context(settings: Settings) -> ssl.SSLContext:
    """A client with these files, that trusts their authority alone. Raises InvalidRequest."""
    return _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings)


def judged(settings: Settings) -> Judged:
    """What a server that trusts our authority says of our certificate. Raises InvalidRequest."""
    server_context = _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
    server_context.verify_mode = ssl.CERT_REQUIRED
    ours = client_context(settings)
    ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(MAX_FLIGHTS):
        try:
            _forward(client)
            if _forward(server):
                return Judged(principal=principal_of(server))
        except ssl.SSLCertVerificationError as error:
            return Judged(_problem(error, settings))
        except ssl.SSLError as error:
            return Judged(f"cannot be used ({error.reason or 'TLS failed'})")
    return Judged("cannot be used")


def principal_of(connection: ssl.SSLObject) -> Principal | None:
    """Who is at the other end, by its verified certificate; None: nobody of ours."""
    names: Any = (connection.getpeercert() or {}).get("subjectAltName", ())
    try:
        return parse_only_principal([value for kind, value in names if kind == "URI"])
    except IdentityError:
        return None


def _forward(end: ssl.SSLObject) -> bool:
    """As far as it goes now; True: the handshake is over on this side."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


EXPIRED, NOT_YET_VALID = 10, 9
"""X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID"""


def _problem(error: ssl.SSLCertVerificationError, settings: Settings) -> str:
    match error.verify_code:
        case code if code == EXPIRED:
            return "has expired"
        case code if code == NOT_YET_VALID:
            return "is not valid yet, by this machine's clock"
    return (
        f"was not issued by the authority in {settings.ca}"
        if error.verify_code in (18, 19, 20, 21)
        else f"cannot be used ({error.verify_message})"
    )


def _files(settings: Settings) -> tuple[Path, Path, Path] | None:
    if settings.insecure or settings.cert is None or settings.key is None or settings.ca is None:
        return None
    return settings.cert, settings.key, settings.ca


def _with_files(context: ssl.SSLContext, settings: Settings) -> ssl.SSLContext:
    files = _files(settings)
    if files is None:
        raise ValueError("a connection without TLS has no certificate")
    cert, key, ca = files
    for path in files:
        _bytes(path)
    try:
        # Without a password given, OpenSSL would ask the terminal for one.
        context.load_cert_chain(cert, key, password=b"")
    except (ssl.SSLError, ValueError) as error:
        other = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        raise _unusable(
            f"{key} is not the key of {cert}" if other else f"{cert} or {key} is no unencrypted PEM file of its kind"
        ) from error
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(f"{ca} is no PEM file of certificates") from error
    return context


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(f"{path} cannot be read ({error.strerror})") from error


def _unusable(problem: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.FIELD_INVALID,
        f"The certificate files cannot be used: {problem}.",
        "Give the tls.crt, tls.key and ca.crt that `hostler pki issue user` made.",
        (Violation("certificate file", problem),),
    )
