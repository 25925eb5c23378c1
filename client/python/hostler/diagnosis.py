"""Why nobody answers at an address: found out by connecting there once more, step by step, after a call found no server.

gRPC says "unavailable" whether the host is off, the port is another program's, or one side refused the other's certificate. Here each step of a
connection is taken with plain sockets and OpenSSL: the name, TCP, TLS, the first frame of HTTP/2. The first that fails has a sentence and a fix.
Nothing is asked of the server, so this is harmless to whatever listens there.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from hostler import credentials
from hostler.server.identity import Principal, PrincipalKind
from hostler.settings import Settings

PROBE_S = 2.0
"""For all steps together; a server that listens takes milliseconds."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""The preface of an HTTP/2 client: the fixed text and an empty SETTINGS frame."""
FRAME_BYTES, SETTINGS_FRAME = 9, 4
"""The server's first frame must be SETTINGS; its type is the fourth byte of a frame's nine."""
TLS_ALERT = 0x15
MAX_ADDRESSES = 4
"""Of one name: usually two, IPv6 and IPv4."""
HOSTNAME_MISMATCH, ADDRESS_MISMATCH = 62, 64
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH"""


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem` and `fix` are sentences. `lasting`: asking again will not help. `ours`: our certificate was refused."""

    problem: str
    fix: str
    lasting: bool = True
    ours: bool = False


async def findings(settings: Settings) -> tuple[Finding | None, ...]:
    """One for each endpoint, in their order, within PROBE_S; None: somebody of ours listens there, and why it did not answer is not known."""
    return tuple(await asyncio.gather(*(_finding(endpoint, settings) for endpoint in settings.endpoints)))


def told(whole: Sequence[Finding | None], settings: Settings, who: str) -> tuple[str, str]:
    """The message and the fix for findings of which at least one is known."""
    known = [found for found in whole if found is not None]
    if len(whole) == 1:
        return known[0].problem, known[0].fix
    parts = (
        found.problem.rstrip(".") if found else f"{endpoint} did not answer"
        for endpoint, found in zip(settings.endpoints, whole, strict=True)
    )
    return f"None of {len(whole)} {who}s answered: {'; '.join(dict.fromkeys(parts))}.", known[0].fix


async def _finding(endpoint: str, settings: Settings) -> Finding | None:
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    step = "does not take a connection"
    try:
        async with asyncio.timeout(PROBE_S):
            reader, writer = await _dialled(host, int(port))
            try:
                step = "takes the connection and says nothing"
                return await (_plain(endpoint, settings, reader, writer) if settings.insecure else _tls(endpoint, settings, reader, writer))
            finally:
                writer.transport.abort()
    except TimeoutError:
        return Finding(
            f"{endpoint} {step} within {PROBE_S:g} s.",
            "Check the address, and that nothing between here and there drops the packets.",
            lasting=False,
        )
    except ConnectionRefusedError:
        return Finding(f"Nothing listens at {endpoint}.", "Check the address, and that the daemon runs there.", lasting=False)
    except socket.gaierror as error:
        known = error.errno != socket.EAI_NONAME
        return Finding(
            f"The name {host} {'cannot be looked up now' if known else 'is not known here'}.",
            "Check the endpoint's spelling, or give an address.",
            lasting=not known,
        )
    except OSError as error:
        return Finding(f"{endpoint} cannot be reached ({error.strerror or error}).", "Check the address and the network.", lasting=False)


async def _dialled(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Each address of the name in turn; the last one's failure is the name's. (asyncio's own loop over them hides which failures there were.)"""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError("it has no address")
    for *_, address in found[:MAX_ADDRESSES]:
        try:
            return await asyncio.open_connection(str(address[0]), port)
        except OSError as error:
            failure = error
    raise failure


# ---- without TLS


async def _plain(endpoint: str, settings: Settings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Finding | None:
    first = await _greeted(reader, writer)
    if _is_settings(first):
        return None
    if first[:1] == bytes([TLS_ALERT]) or await _speaks_tls(endpoint):
        return Finding(f"The server at {endpoint} speaks TLS.", "Give your certificate, its key and the authority instead of insecure.")
    if not first:
        return Finding(f"The server at {endpoint} hangs up.", "Check the address and the port, and the server's log.", lasting=False)
    return _stranger(endpoint)


async def _speaks_tls(endpoint: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        (await _handshake(endpoint, context, None)).transport.abort()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return True


# ---- with TLS


async def _tls(endpoint: str, settings: Settings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Finding | None:
    context = credentials.client_context(settings)
    context.set_alpn_protocols(["h2"])
    expected = settings.server_name or endpoint.rpartition(":")[0].strip("[]")
    try:
        await writer.start_tls(context, server_hostname=expected)
    except ssl.SSLCertVerificationError as error:
        return await _distrusted(endpoint, settings, error)
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return _refused(endpoint, settings)
        return Finding(
            f"The server at {endpoint} does not speak TLS.", "Check the port: it may be another program's, or a daemon's without TLS."
        )
    except ConnectionError:
        return Finding(
            f"The server at {endpoint} does not speak TLS: it hangs up.", "Check the port: it may be another program's.", lasting=False
        )
    if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
        return _stranger(endpoint)
    first = await _greeted(reader, writer)
    if not first:
        return _refused(endpoint, settings)
    return None if _is_settings(first) else _stranger(endpoint)


def _refused(endpoint: str, settings: Settings) -> Finding:
    """A server of ours, by its certificate, that closes when it has seen our own."""
    problem = credentials.judged(settings).problem
    if problem:
        return Finding(f"Your certificate {settings.cert} {problem}.", "Get a new one: `hostler pki issue user NAME`.", ours=True)
    return Finding(
        f"The server at {endpoint} hangs up when it has seen your certificate {settings.cert}.",
        "See the server's log: its authority or its clock may be another.",
        lasting=False,
        ours=True,
    )


async def _distrusted(endpoint: str, settings: Settings, error: ssl.SSLCertVerificationError) -> Finding:
    match error.verify_code:
        case credentials.EXPIRED:
            return Finding(f"The certificate of the server at {endpoint} has expired.", "Issue a new one there with `hostler pki issue`.")
        case credentials.NOT_YET_VALID:
            return Finding(f"The certificate of the server at {endpoint} is not valid yet.", "Check the clocks of both machines.")
        case code if code in (HOSTNAME_MISMATCH, ADDRESS_MISMATCH):
            return await _somebody_else(endpoint, settings)
    return Finding(
        f"The server at {endpoint} has no certificate of the authority in {settings.ca}.",
        "Check the address, and that the ca.crt is this cluster's.",
    )


async def _somebody_else(endpoint: str, settings: Settings) -> Finding:
    """Of our authority, and not the one that was meant."""
    context = credentials.client_context(settings)
    context.check_hostname = False
    writer = await _handshake(endpoint, context, None)
    try:
        who = credentials.principal_of(writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()
    meant = _meant(settings, endpoint)
    if who is None:
        return Finding(f"The server at {endpoint} is not {meant}.", "Check the address.")
    fix = f"If that is the one you mean: {_connect_to(who, endpoint)}. Else check the address."
    return Finding(f"The server at {endpoint} is {who.kind} {who.id}, not {meant}.", fix)


def _meant(settings: Settings, endpoint: str) -> str:
    label, _, rest = settings.server_name.partition(".")
    if not settings.server_name:
        return f"known as {endpoint.rpartition(':')[0]}"
    return f"node {label}" if rest.startswith(f"{PrincipalKind.NODE}.") else "a scheduler"


def _connect_to(who: Principal, endpoint: str) -> str:
    if who.kind is PrincipalKind.NODE:
        return f"--node-endpoint {who.id}@{endpoint}, or HOSTLER_NODE_ENDPOINT"
    return f"--endpoint {endpoint}, or HOSTLER_ENDPOINT"


async def _handshake(endpoint: str, context: ssl.SSLContext, server_name: str | None) -> asyncio.StreamWriter:
    host, _, port = endpoint.rpartition(":")
    _, writer = await _dialled(host.strip("[]"), int(port))
    await writer.start_tls(context, server_hostname=server_name)
    return writer


# ---- HTTP/2


async def _greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The first bytes of the answer to HELLO; empty: hung up."""
    try:
        writer.write(HELLO)
        return await reader.readexactly(FRAME_BYTES)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except (ssl.SSLError, ConnectionError):
        return b""


def _is_settings(first: bytes) -> bool:
    return len(first) == FRAME_BYTES and first[3] == SETTINGS_FRAME


def _stranger(endpoint: str) -> Finding:
    return Finding(f"The server at {endpoint} is none of Hostler's: it does not speak gRPC.", "Check the address and the port.")
