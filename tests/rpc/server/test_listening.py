"""Where and how a server listens: never open to the network without client certificates, never silently on a shared port."""

import os
import stat
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hostler.errors import Unavailable
from hostler.server import pki
from hostler.server.clock import SystemClock, SystemIds
from hostler.server.server import ListenError, RpcServer, build_server
from hostler.server.tls import ServerTls, TlsFiles
from tests.rpc.server.conftest import ACCESS, CLUSTER, NODE2, SERVER, Echo, World, plain_channel, refused


def insecure_server(*, insecure: bool = True) -> RpcServer:
    server = build_server(cluster=CLUSTER, access=ACCESS, clock=SystemClock(), ids=SystemIds(), insecure=insecure)
    server.grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Echo", Echo().handlers()),))
    return server


async def test_a_second_server_on_the_port_is_told_why_it_cannot(world: World) -> None:
    async with world.serving() as run:
        other = build_server(cluster=CLUSTER, access=ACCESS, clock=world.clock, ids=SystemIds())
        with pytest.raises(ListenError, match=rf"^cannot listen on 127.0.0.1:{run.port}: Address already in use$"):
            other.listen(f"127.0.0.1:{run.port}", ServerTls(world.files(SERVER), clock=world.clock))


@pytest.mark.parametrize("address", ["nonsense", "192.0.2.1:0", "unix:/nonexistent/dir/s.sock"])
async def test_an_address_that_cannot_be_had_gives_one_line(world: World, address: str) -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on [^\n]+: [^\n]+$"):
        build_server(cluster=CLUSTER, access=ACCESS, clock=world.clock, ids=SystemIds()).listen(
            address, ServerTls(world.files(SERVER), clock=world.clock)
        )


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "localhost:0", "127.0.0.1.example.com:0", ":0"])
async def test_nothing_but_literal_loopback_is_served_without_certificates(address: str) -> None:
    with pytest.raises(ListenError, match="refusing to listen"):
        insecure_server().listen_insecure(address)


async def test_insecure_must_be_asked_for() -> None:
    with pytest.raises(ListenError, match="refusing to listen"):
        insecure_server(insecure=False).listen_insecure("127.0.0.1:0")


async def test_without_tls_a_caller_is_a_user_and_nothing_more(tmp_path: Path) -> None:
    server = insecure_server()
    path = tmp_path / "agent.sock"
    server.listen_insecure(f"unix:{path}")
    port = server.listen_insecure("127.0.0.1:0")
    await server.start()
    try:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        for target in (f"unix:{path}", f"127.0.0.1:{port}"):
            async with plain_channel(target) as channel:
                assert await channel.unary_unary("/t.Echo/WhoAmI")(b"") == b"spiffe://lab/user/insecure-local"
                await refused(channel.unary_unary("/t.Echo/NodesOnly")(b""))
    finally:
        await server.stop(0)


async def test_health_follows_the_daemon_and_reflection_names_the_services(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "t.Echo"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        answer = await answers.read()
        assert "t.Echo" in {service.name for service in answer.list_services_response.service}
        answers.cancel()
        await run.server.set_serving(False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(world: World, tmp_path: Path) -> None:
    files = TlsFiles.in_directory(tmp_path)
    pki.write(pki.issue(world.ca, SERVER), tmp_path)
    tls = ServerTls(files, clock=world.clock)
    server = build_server(cluster=CLUSTER, access=ACCESS, clock=world.clock, ids=SystemIds())
    server.grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Echo", Echo().handlers()),))
    port = server.listen("127.0.0.1:0", tls)
    await server.start()

    async def call() -> bytes:
        async with world.channel(port) as channel:
            answer: bytes = await channel.unary_unary("/t.Echo/WhoAmI")(b"")
            return answer

    try:
        await call()
        first = tls.material.cert_pem
        pki.write(pki.issue(world.ca, SERVER), tmp_path)
        await call()
        second = tls.material
        assert second.cert_pem != first
        assert second.cert_pem == files.cert.read_bytes()
        foreign_key = pki.issue(world.ca, SERVER).key_pem
        for damage in (
            lambda: files.key.write_bytes(foreign_key),
            lambda: files.cert.write_text("half a cert"),
            files.key.unlink,
            lambda: pki.write(pki.issue(world.ca, NODE2), tmp_path),
        ):
            damage()
            await call()
            assert tls.material is second
        # What is served, not only what is remembered: a new CA's clients are let in, the old CA's are not.
        other = pki.create_ca(CLUSTER)
        pki.write(pki.issue(other, SERVER), tmp_path)
        async with world.channel(port) as channel:
            assert isinstance(await refused(channel.unary_unary("/t.Echo/WhoAmI")(b"")), Unavailable)
    finally:
        await server.stop(0)
