"""Why nobody answers, on real sockets: each way in which a connection fails has one sentence and one fix, and what will not heal is told at once."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization

import hostler
from devcluster.cluster import DevCluster, DevOptions, dev_cluster
from hostler.diagnosis import PROBE_S
from hostler.node import connect_node
from hostler.server import pki
from hostler.server.clock import SystemClock
from hostler.server.identity import SCHEDULER_DNS_NAME, Principal, PrincipalKind
from tests.rpc.sdk.conftest import Cli, environment

CALL_S = 30.0
AT_ONCE_S = 5.0
"""Well below CALL_S: what lasts is not asked again until the time is over."""


class LongAgo(SystemClock):
    """When certificates were issued that have expired since."""

    def now(self) -> datetime:
        return super().now() - timedelta(days=4000)


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DevCluster]:
    async with dev_cluster(tmp_path_factory.mktemp("cluster"), DevOptions(nodes=1, replicas=1)) as running:
        yield running


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority with the same name: a user's in `user`, a scheduler's in `scheduler`."""
    directory = tmp_path_factory.mktemp("strangers")
    ca = pki.init_ca(directory / "ca", "dev")
    for kind in (PrincipalKind.USER, PrincipalKind.SCHEDULER):
        pki.write(pki.issue(ca, Principal("dev", kind, "eve")), directory / kind.value)
    return directory


def expired(cluster: DevCluster, kind: PrincipalKind) -> Path:
    directory = cluster.directory / "expired" / kind.value
    if not directory.exists():
        ca = pki.load_ca(cluster.directory / "ca")
        pki.write(pki.issue(ca, Principal("dev", kind, "old"), clock=LongAgo()), directory)
    return directory


async def no(endpoint: str, tls: Path | None, ca: Path | None = None, call_s: float = CALL_S) -> hostler.HostlerError:
    """What a call there is refused with."""
    if tls is None:
        connecting = hostler.connect(endpoint, insecure=True, call_s=call_s)
    else:
        connecting = hostler.connect(endpoint, cert=tls / "tls.crt", key=tls / "tls.key", ca=(ca or tls) / "ca.crt", call_s=call_s)
    async with asyncio.timeout(AT_ONCE_S):
        async with connecting as cluster:
            with pytest.raises(hostler.HostlerError) as refused:
                await cluster.get_vm("web-1")
    return refused.value


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """host:port of a server that is none of ours."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, ssl.SSLError):
            return
        finally:
            writer.transport.abort()

    listening = await asyncio.start_server(closing, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def http_1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()


async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await reader.read(100)


async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return


async def say_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass


def server_context(tls: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "tls.crt", tls / "tls.key")
    context.set_alpn_protocols(["h2"])
    return context


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


# ---- nobody is there


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nothing_listens(cluster: DevCluster, host: str) -> None:
    """ "did not answer" for a port that is closed."""
    endpoint = f"{host}:{free_port()}"
    refused = await no(endpoint, cluster.user_certificate(), call_s=0.5)
    assert (type(refused), refused.message) == (hostler.Unavailable, f"Nothing listens at {endpoint}.")
    assert "the daemon runs there" in refused.fix


async def test_a_name_that_nobody_knows(cluster: DevCluster) -> None:
    """A misspelt name that looks like a server that is down."""
    refused = await no("scheduler.invalid:7400", cluster.user_certificate())
    assert refused.message == "The name scheduler.invalid is not known here."


async def test_several_replicas_are_told_in_one_line(cluster: DevCluster) -> None:
    """Of several endpoints only one is told."""
    first, second = free_port(), free_port()
    refused = await no(f"127.0.0.1:{first},127.0.0.1:{second}", cluster.user_certificate(), call_s=0.5)
    assert refused.message == f"None of 2 schedulers answered: Nothing listens at 127.0.0.1:{first}; Nothing listens at 127.0.0.1:{second}."


async def test_a_server_that_says_nothing(cluster: DevCluster) -> None:
    """A hang that is told as a closed port; or a diagnosis that hangs with the server."""
    async with server(say_nothing) as endpoint:
        refused = await no(endpoint, cluster.user_certificate(), call_s=PROBE_S)
    assert refused.message == f"{endpoint} takes the connection and says nothing within 2 s."


# ---- somebody else is there


@pytest.mark.parametrize("serve", [http_1, banner])
async def test_another_program_without_tls(cluster: DevCluster, serve: Serve) -> None:
    """A wrong port that is told as an outage, and asked until the time is over."""
    async with server(serve) as endpoint:
        refused = await no(endpoint, cluster.user_certificate())
        assert refused.message == f"The server at {endpoint} does not speak TLS."
        plain = await no(endpoint, None)
        assert plain.message == f"The server at {endpoint} is none of Hostler's: it does not speak gRPC."


async def test_another_program_that_hangs_up(cluster: DevCluster) -> None:
    """As above, when it says nothing at all."""
    async with server(hang_up) as endpoint:
        refused = await no(endpoint, cluster.user_certificate(), call_s=0.5)
        plain = await no(endpoint, None, call_s=0.5)
    assert refused.message == f"The server at {endpoint} does not speak TLS: it hangs up."
    assert plain.message == f"The server at {endpoint} hangs up."


async def test_another_program_with_tls(cluster: DevCluster, strangers: Path) -> None:
    """A web server's certificate that is told as an outage."""
    async with server(http_1, server_context(strangers / "scheduler")) as endpoint:
        refused = await no(endpoint, cluster.user_certificate())
    assert refused.message == f"The server at {endpoint} has no certificate of the authority in {cluster.user_certificate() / 'ca.crt'}."


async def test_another_grpc_server() -> None:
    """ "did not answer" from a server that answered; or a traceback."""
    listening = grpc.aio.server()
    port = listening.add_insecure_port("127.0.0.1:0")
    await listening.start()
    refused = await no(f"127.0.0.1:{port}", None)
    await listening.stop(0)
    assert type(refused) is hostler.Internal
    assert refused.message.startswith(f"The server at 127.0.0.1:{port} does not know this call: it is no scheduler of Hostler's")


async def test_no_tls_where_tls_is_spoken(cluster: DevCluster) -> None:
    """--insecure against a real scheduler, told as an outage."""
    refused = await no(cluster.endpoints[0], None)
    assert refused.message == f"The server at {cluster.endpoints[0]} speaks TLS."


# ---- certificates


async def test_the_wrong_authority(cluster: DevCluster, strangers: Path) -> None:
    """Another cluster's ca.crt."""
    refused = await no(cluster.endpoints[0], cluster.user_certificate(), strangers / "user")
    assert type(refused) is hostler.Unavailable
    assert (
        refused.message == f"The server at {cluster.endpoints[0]} has no certificate of the authority in {strangers / 'user' / 'ca.crt'}."
    )


async def test_a_certificate_of_another_authority(cluster: DevCluster, strangers: Path) -> None:
    """Our own certificate is refused, and we are told that the server is down: gRPC's servers hang up without a word."""
    ca = cluster.user_certificate()
    refused = await no(cluster.endpoints[0], strangers / "user", ca)
    assert type(refused) is hostler.Unauthenticated
    assert refused.message == f"Your certificate {strangers / 'user' / 'tls.crt'} was not issued by the authority in {ca / 'ca.crt'}."
    assert refused.fix == "Get a new one: `hostler pki issue user NAME`."


async def test_an_expired_certificate(cluster: DevCluster) -> None:
    """As above: it is ours that has expired."""
    tls = expired(cluster, PrincipalKind.USER)
    refused = await no(cluster.endpoints[0], tls)
    assert (type(refused), refused.message) == (hostler.Unauthenticated, f"Your certificate {tls / 'tls.crt'} has expired.")


async def test_a_server_whose_certificate_has_expired(cluster: DevCluster) -> None:
    """A forgotten renewal that is told as an outage."""
    async with server(say_nothing, server_context(expired(cluster, PrincipalKind.SCHEDULER))) as endpoint:
        refused = await no(endpoint, cluster.user_certificate())
    assert refused.message == f"The certificate of the server at {endpoint} has expired."


async def test_a_daemon_s_certificate_in_a_user_s_hands(cluster: DevCluster) -> None:
    """A refusal that names a method's path and no fix."""
    tls = cluster.directory / "tls" / "node" / "n1"
    refused = await no(cluster.endpoints[0], tls)
    assert type(refused) is hostler.PermissionDenied
    assert refused.message == f"{tls / 'tls.crt'} is the certificate of node n1, and only users may ask this."
    assert "hostler pki issue user NAME" in refused.fix


async def test_files_that_do_not_fit_together(cluster: DevCluster, strangers: Path, tmp_path: Path) -> None:
    """A key of another certificate, or a file that is none, told as an outage after fifteen seconds; a question for a password on the terminal."""
    tls, other = cluster.user_certificate(), strangers / "user"
    (tmp_path / "none.crt").write_text("nothing")
    encrypted = tmp_path / "encrypted.key"
    key = serialization.load_pem_private_key((tls / "tls.key").read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"secret")
    encrypted.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    for cert, private, ca, told in (
        (tls / "tls.crt", other / "tls.key", tls / "ca.crt", "is not the key of"),
        (tls / "tls.crt", encrypted, tls / "ca.crt", "is no unencrypted PEM file"),
        (tls / "tls.crt", tls / "tls.key", tmp_path / "none.crt", "is no PEM file of certificates"),
        (tmp_path / "absent.crt", tls / "tls.key", tls / "ca.crt", "cannot be read"),
    ):
        with pytest.raises(hostler.InvalidRequest, match=told):
            async with hostler.connect("127.0.0.1:1", cert=cert, key=private, ca=ca):
                pass


# ---- a daemon of ours, and not the one that was meant


async def test_a_node_where_a_scheduler_was_meant_and_the_other_way_round(cluster: DevCluster) -> None:
    """A port of the wrong daemon; or an answer believed from whoever holds any certificate of the cluster."""
    agent = f"127.0.0.1:{cluster.agents['n1'].port}"
    tls = cluster.user_certificate()
    refused = await no(agent, tls)
    assert refused.message == f"The server at {agent} is node n1, not a scheduler."
    assert f"--node-endpoint n1@{agent}" in refused.fix
    for endpoint, told in (
        (f"n2@{agent}", f"The server at {agent} is node n1, not node n2."),
        (agent, f"The server at {agent} is node n1, not known as 127.0.0.1."),
        (f"n1@{cluster.endpoints[0]}", f"The server at {cluster.endpoints[0]} is scheduler s1, not node n1."),
    ):
        async with asyncio.timeout(AT_ONCE_S):
            async with connect_node(endpoint, cert=tls / "tls.crt", key=tls / "tls.key", ca=tls / "ca.crt") as host:
                with pytest.raises(hostler.Unavailable) as wrong:
                    await host.get_host()
        assert wrong.value.message == told


async def test_a_watch_is_given_up_at_once_as_well(cluster: DevCluster, strangers: Path) -> None:
    """A minute of silence before the sentence."""
    tls = cluster.user_certificate()
    connecting = hostler.connect(cluster.endpoints[0], cert=tls / "tls.crt", key=tls / "tls.key", ca=strangers / "user" / "ca.crt")
    async with asyncio.timeout(AT_ONCE_S):
        async with connecting as sdk:
            with pytest.raises(hostler.Unavailable, match="no certificate of the authority"):
                await anext(sdk.watch_vms())


async def test_the_command_line_says_it_in_two_lines(cluster: DevCluster, strangers: Path) -> None:
    """gRPC's own log on the terminal, or a refusal without its fix."""
    agent, tls = f"127.0.0.1:{cluster.agents['n1'].port}", cluster.user_certificate()
    cli = Cli(environment(HOSTLER_CERT=str(tls / "tls.crt"), HOSTLER_KEY=str(tls / "tls.key"), HOSTLER_CA=str(tls / "ca.crt")))
    ran = await cli("--endpoint", agent, "vm", "list")
    assert ran.status == 6
    assert ran.err.splitlines() == [
        f"error: The server at {agent} is node n1, not a scheduler.",
        f"If that is the one you mean: --node-endpoint n1@{agent}, or HOSTLER_NODE_ENDPOINT. Else check the address.",
    ]
    ran = await cli(
        "--endpoint",
        cluster.endpoints[0],
        "--cert",
        f"{tls}/tls.crt",
        "--key",
        f"{tls}/tls.key",
        "--ca",
        f"{strangers}/user/ca.crt",
        "op",
        "ls",
    )
    assert (ran.status, len(ran.err.splitlines())) == (6, 2), ran.err
    old = expired(cluster, PrincipalKind.USER)
    ran = await Cli({**cli.environment, "HOSTLER_CERT": str(old / "tls.crt"), "HOSTLER_KEY": str(old / "tls.key")})(
        "--endpoint", cluster.endpoints[0], "vm", "list"
    )
    assert (ran.status, len(ran.err.splitlines())) == (7, 2), ran.err


def test_the_names_are_those_of_the_certificates() -> None:
    """A server name that no certificate bears."""
    assert hostler.connect("127.0.0.1:1", insecure=True)._settings.server_name == SCHEDULER_DNS_NAME
    node = Principal("dev", PrincipalKind.NODE, "n1")
    assert connect_node("n1@127.0.0.1:1", insecure=True)._settings.server_name == node.dns_name
