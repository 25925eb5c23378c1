"""The TLS tunnel as a carrier: bytes, ends, cuts, and everybody who must not get in."""

import asyncio
import hashlib
import os
import select
import socket
import ssl
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostler.server.identity import Principal, PrincipalKind
from hostler.server.tls import client_context
from nodeagent.adapters import tls_tunnel
from nodeagent.adapters.tls_tunnel import LIBVIRT_ALPN, QEMU_ALPN, TlsTunnel
from nodeagent.ports import MigrationSockets, TunnelFailed
from tests.contract.tunnel.rig import CLUSTER, Pki, TunnelRig, node, open_rig

OP = "4f0c1d2e-0000-4000-8000-000000000001"
MIB = 1 << 20
LOAD_MIB = 64
READ_BYTES = 256 << 10
DISKS_MOST = 16
"""Of a VM."""


@pytest.fixture
async def rig() -> AsyncIterator[TunnelRig]:
    async with open_rig() as opened, asyncio.timeout(90):
        yield opened


async def opened(rig: TunnelRig) -> MigrationSockets:
    endpoint = await rig.destination.open_incoming(OP, "n1")
    return await rig.source.open_outgoing(OP, endpoint, "n2")


def load(seed: bytes) -> bytes:
    """LOAD_MIB of bytes that differ everywhere."""
    block = b"".join(hashlib.sha256(seed + struct.pack("!I", n)).digest() for n in range(MIB // 32))
    return b"".join(struct.pack("!Q", n) + block[8:] for n in range(LOAD_MIB))


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for begin in range(0, len(data), MIB):
        writer.write(data[begin : begin + MIB])
        await writer.drain()
    writer.write_eof()


async def receive(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while part := await reader.read(READ_BYTES):
        parts.append(part)
    return b"".join(parts)


async def test_bytes_go_both_ways_at_once_unchanged_in_every_stream(rig: TunnelRig) -> None:
    """One wrong byte in guest memory, or on a disk, is a corrupt guest."""
    there, back = load(b"there"), load(b"back")
    received: list[bytes] = []

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(writer, back), name="send back")
            received.append(await receive(reader))

    async def use(path: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(writer, there), name="send")
            answer = await receive(reader)
        writer.close()
        return answer

    sockets = await opened(rig)
    qemu = rig.serving(rig.destination_directory / f"{OP}.qemu", service)
    disks = rig.serving(rig.destination_directory / f"{OP}.disks", service)
    async with rig.serving(rig.libvirt_path, service), qemu, disks, asyncio.TaskGroup() as group:
        uses = [group.create_task(use(path), name=path) for path in (sockets.libvirt, sockets.qemu, sockets.disks)]
    assert [one.result() == back for one in uses] == [True, True, True]
    assert [one == there for one in received] == [True, True, True]


async def test_each_disk_has_a_connection_of_its_own_and_ends_where_the_disks_are(rig: TunnelRig) -> None:
    """A disk that is written into the stream of memory, or a VM with many disks that cannot be copied."""
    served = 0

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        writer.write(b"disk")
        await reader.read()

    sockets = await opened(rig)
    async with rig.serving(rig.destination_directory / f"{OP}.disks", say):
        connected = [await asyncio.open_unix_connection(sockets.disks) for _ in range(DISKS_MOST)]
        assert [await reader.readexactly(4) for reader, _ in connected] == [b"disk"] * DISKS_MOST
        for _, writer in connected:
            writer.close()
    assert served == DISKS_MOST


async def test_an_end_of_one_direction_leaves_the_other_open(rig: TunnelRig) -> None:
    """libvirt and QEMU say "that was all" and then wait for the answer."""

    async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{len(await receive(reader))}".encode())

    async with rig.serving(rig.libvirt_path, answer_after_the_end):
        reader, writer = await asyncio.open_unix_connection((await opened(rig)).libvirt)
        writer.write(b"x" * 300_000)
        writer.write_eof()
        assert await receive(reader) == b"300000"
        writer.close()


async def test_the_last_bytes_are_not_lost_when_the_sender_closes_at_once(rig: TunnelRig) -> None:
    """The end of the connection overtakes what a slow receiver has not taken yet, and must not stand for it."""
    data = load(b"last")

    async def send_and_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send(writer, data)

    async with rig.serving(rig.libvirt_path, send_and_go):
        reader, writer = await asyncio.open_unix_connection((await opened(rig)).libvirt)
        writer.write_eof()
        assert await receive(reader) == data
        writer.close()


async def test_a_receiver_that_does_not_read_stops_the_sender(rig: TunnelRig) -> None:
    """Buffers without a bound would hold a guest's memory in the agent."""
    release = asyncio.Event()

    async def sleepy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(hashlib.sha256(await receive(reader)).digest())

    data, loop = load(b"slow"), asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.setblocking(False)
        async with rig.serving(rig.libvirt_path, sleepy):
            await loop.sock_connect(plain, (await opened(rig)).libvirt)
            sending = asyncio.ensure_future(loop.sock_sendall(plain, data))
            done, _ = await asyncio.wait([sending], timeout=1.0)
            release.set()
            assert not done, "64 MiB went into a stream that nobody reads"
            await sending
            plain.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(plain, 64) == hashlib.sha256(data).digest()


async def test_connections_that_ended_make_room(rig: TunnelRig) -> None:
    """A thread that never learns that it is done is a leak, and soon nobody gets in any more."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await receive(reader))

    async with rig.serving(rig.libvirt_path, echo):
        sockets = await opened(rig)
        for n in range(tls_tunnel.CONNECTIONS_PER_OPERATION * 3):
            reader, writer = await asyncio.open_unix_connection(sockets.libvirt)
            writer.write(f"{n}".encode())
            writer.write_eof()
            assert await receive(reader) == f"{n}".encode()
            writer.close()


async def test_a_cut_is_noticed_although_nothing_more_was_to_come(rig: TunnelRig) -> None:
    """One direction has ended, the other is idle: libvirt would wait for ever on a socket that leads nowhere."""

    async def say_that_was_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await reader.read()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.setblocking(False)
        async with rig.serving(rig.libvirt_path, say_that_was_all):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(plain, (await opened(rig)).libvirt)
            assert await loop.sock_recv(plain, 1) == b""
            await rig.destination.close_incoming(OP)
            assert await asyncio.to_thread(hangs_up, plain), "the source's end was left open"


def hangs_up(plain: socket.socket) -> bool:
    """Whether the other side closes within 10 s."""
    poll = select.poll()
    poll.register(plain, 0)
    return bool(poll.poll(10_000))


@pytest.mark.parametrize("end", ["incoming", "outgoing"])
async def test_closing_cuts_what_is_connected_at_both_ends(rig: TunnelRig, end: str) -> None:
    """A closed operation that still carries bytes is a libvirtd open to another host."""
    connected, cut = asyncio.Event(), asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        cut.set()

    async with rig.serving(rig.libvirt_path, wait_for_end):
        reader, writer = await asyncio.open_unix_connection((await opened(rig)).libvirt)
        await connected.wait()
        await (rig.destination.close_incoming(OP) if end == "incoming" else rig.source.close_outgoing(OP))
        assert await reader.read() == b""
        await cut.wait()
        writer.close()


async def knock(
    rig: TunnelRig, endpoint: str, principal: Principal | None, *, alpn: str = LIBVIRT_ALPN, authority: Pki | None = None
) -> bytes:
    """What somebody hears who knocks with that certificate (None: none); empty: cut off, before or after the handshake."""
    if principal is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context = client_context((authority or rig.pki).files(principal))
        if authority is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    host, _, port = endpoint.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="n2.node.hostler.internal")
    except OSError:
        return b""
    try:
        return await reader.read(100)
    except OSError:
        return b""
    finally:
        writer.close()


@pytest.fixture
async def talkative(rig: TunnelRig) -> AsyncIterator[TunnelRig]:
    """A rig whose libvirt greets whoever gets through."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    async with rig.serving(rig.libvirt_path, greet):
        yield rig


async def test_the_named_node_gets_in(talkative: TunnelRig) -> None:
    """Proves that the refusals below are refusals, and not a door that never opens."""
    endpoint = await talkative.destination.open_incoming(OP, "n1")
    assert b"hello" in await knock(talkative, endpoint, node("n1"))


async def test_nobody_else_gets_in(talkative: TunnelRig) -> None:
    """Behind this door is root on the host."""
    endpoint = await talkative.destination.open_incoming(OP, "n1")
    assert await knock(talkative, endpoint, None) == b""
    assert await knock(talkative, endpoint, node("n3")) == b""
    assert await knock(talkative, endpoint, node("n2")) == b""
    assert await knock(talkative, endpoint, Principal(CLUSTER, PrincipalKind.SCHEDULER, "n1")) == b""
    assert await knock(talkative, endpoint, Principal(CLUSTER, PrincipalKind.USER, "n1")) == b""
    impostor = Pki(talkative.root / "impostor")
    assert await knock(talkative, endpoint, node("n1"), authority=impostor) == b""
    assert b"hello" in await knock(talkative, endpoint, node("n1"))


async def test_a_stream_that_is_neither_libvirt_nor_qemu_is_refused(talkative: TunnelRig) -> None:
    """Without the check an unknown stream would be taken for one of the two."""
    endpoint = await talkative.destination.open_incoming(OP, "n1")
    assert await knock(talkative, endpoint, node("n1"), alpn="h2") == b""


async def test_qemus_stream_ends_at_this_operations_qemu_alone(talkative: TunnelRig) -> None:
    """With no QEMU waiting there is nothing to reach, and libvirt's socket is not a substitute."""
    endpoint = await talkative.destination.open_incoming(OP, "n1")
    assert await knock(talkative, endpoint, node("n1"), alpn=QEMU_ALPN) == b""


async def test_an_old_tls_is_refused(talkative: TunnelRig) -> None:
    """TLS 1.2 has a longer history of holes than we have tests."""
    endpoint = await talkative.destination.open_incoming(OP, "n1")
    context = client_context(talkative.pki.files(node("n1")))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, _, port = endpoint.rpartition(":")
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(host, int(port), ssl=context, server_hostname="n2.node.hostler.internal")


async def answers(endpoint: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = endpoint.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def until_silent(endpoint: str) -> None:
    while await answers(endpoint):  # noqa: ASYNC110 the kernel has no event for a port that nobody listens on any more
        await asyncio.sleep(0.05)


async def test_after_close_the_port_answers_nobody(talkative: TunnelRig) -> None:
    """A listener left behind is an open door that nobody knows of."""
    endpoint = await talkative.destination.open_incoming(OP, "n1")
    assert await answers(endpoint)
    await talkative.destination.close_incoming(OP)
    assert not await answers(endpoint)


async def test_a_listener_that_nobody_used_closes_by_itself() -> None:
    """The source may die between the promise and its first step."""
    async with open_rig(unused_listener_s=0.2) as rig, asyncio.timeout(30):
        endpoint = await rig.destination.open_incoming(OP, "n1")
        await until_silent(endpoint)
        assert await rig.destination.open_incoming(OP, "n1") != ""


async def test_more_connections_than_an_operation_needs_are_refused(rig: TunnelRig) -> None:
    """Each is a thread; a source gone mad must not take them all."""
    arrived = asyncio.Semaphore(0)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.release()
        await reader.read()

    async with rig.serving(rig.libvirt_path, hold):
        sockets = await opened(rig)
        held = []
        for _ in range(tls_tunnel.CONNECTIONS_PER_OPERATION):
            held.append(await asyncio.open_unix_connection(sockets.libvirt))
            await arrived.acquire()
        reader, writer = await asyncio.open_unix_connection(sockets.libvirt)
        assert await reader.read() == b""
        for _, one in [*held, (reader, writer)]:
            one.close()
        await rig.source.close_outgoing(OP)


async def test_the_sockets_are_private_and_gone_after_close(rig: TunnelRig) -> None:
    """Whoever can connect to them is root on the other host."""
    sockets = await opened(rig)
    directory = Path(sockets.libvirt).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (sockets.libvirt, sockets.qemu)] == [0o600, 0o600]
    await rig.source.close_outgoing(OP)
    assert list(directory.iterdir()) == []


async def test_what_a_dead_agent_left_is_swept_and_what_lives_is_not(rig: TunnelRig) -> None:
    """A waiting QEMU must survive a restart of its agent; a dead socket must not."""
    dead = rig.destination_directory / "dead.qemu"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(dead))
    left.close()
    alive = socket.socket(socket.AF_UNIX)
    alive.bind(str(rig.destination_directory / "alive.qemu"))
    files = rig.pki.files(node("n2"))
    async with TlsTunnel(
        node("n2"), files, listen_host="127.0.0.1", directory=rig.destination_directory, libvirt_socket=lambda: "", qemu_gid=None
    ):
        assert [path.name for path in rig.destination_directory.iterdir()] == ["alive.qemu"]
    alive.close()


@pytest.mark.parametrize("operation_id", ["", "../escape", "a/b", "a\0b", "." * 3, "x" * 100])
async def test_ids_that_could_leave_the_directory_are_refused(rig: TunnelRig, operation_id: str) -> None:
    """The id becomes a path that root creates."""
    with pytest.raises(TunnelFailed):
        await rig.destination.open_incoming(operation_id, "n1")
    with pytest.raises(TunnelFailed):
        await rig.source.open_outgoing(operation_id, "127.0.0.1:1", "n2")


@pytest.mark.parametrize("endpoint", ["", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "host:-1"])
async def test_endpoints_that_are_none_are_refused(rig: TunnelRig, endpoint: str) -> None:
    """It comes from another host."""
    with pytest.raises(TunnelFailed):
        await rig.source.open_outgoing(OP, endpoint, "n2")
