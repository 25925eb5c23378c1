"""How much a handoff's tunnel carries, beside the same splice over plain TCP, in one process and interleaved. Run: python -m tests.bench.bench_tunnel

Both ends and the load share this machine's CPUs, so the figure is a floor: real hosts do one end each.
"""

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
import threading
import time

from tests.contract.tunnel.rig import open_rig

OP = "bench"
BLOCK = bytes(1 << 20)
CHUNK_BYTES = 256 << 10


def pump(source: socket.socket, sink: socket.socket) -> None:
    """The plain splice's one direction."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while size := source.recv_into(buffer):
        sink.sendall(buffer[:size])
    sink.shutdown(socket.SHUT_WR)


def drain(listener: socket.socket, received: list[int]) -> None:
    """Stands for the destination's QEMU."""
    connection, _ = listener.accept()
    buffer, total = memoryview(bytearray(CHUNK_BYTES)), 0
    while size := connection.recv_into(buffer):
        total += size
    received.append(total)
    connection.close()


def unix_listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def send(path: str, mib: int) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(path)
        for _ in range(mib):
            plain.sendall(BLOCK)
        plain.shutdown(socket.SHUT_WR)
        plain.recv(1)


def timed(path: str, listener: socket.socket, mib: int) -> float:
    """MiB per second from the source's unix socket to the destination's."""
    received: list[int] = []
    thread = threading.Thread(target=drain, args=(listener, received))
    began_s = time.monotonic()
    thread.start()
    send(path, mib)
    thread.join()
    if received != [mib << 20]:
        raise RuntimeError(f"{received} bytes arrived instead of {mib << 20}")
    return mib / (time.monotonic() - began_s)


def plain_splice(entry: socket.socket, target: str) -> None:
    """unix -> TCP -> unix, as the tunnel does it, without TLS."""
    tcp_listener = socket.create_server(("127.0.0.1", 0))

    def far() -> None:
        tcp, _ = tcp_listener.accept()
        with tcp, socket.socket(socket.AF_UNIX) as plain:
            plain.connect(target)
            pump(tcp, plain)
            plain.recv(1)

    def near() -> None:
        connection, _ = entry.accept()
        with connection, socket.create_connection(tcp_listener.getsockname()) as tcp:
            pump(connection, tcp)
            tcp.recv(1)

    for work in (far, near):
        threading.Thread(target=work, daemon=True).start()


async def measure(mib: int, rounds: int) -> tuple[list[float], list[float]]:
    async with open_rig() as rig:
        endpoint = await rig.destination.open_incoming(OP, "n1")
        sockets = await rig.source.open_outgoing(OP, endpoint, "n2")
        target = str(rig.destination_directory / f"{OP}.qemu")
        tls, plain = [], []
        with contextlib.closing(unix_listener(target)) as listener, contextlib.closing(unix_listener(str(rig.root / "plain"))) as entry:
            for _ in range(rounds):
                tls.append(await asyncio.to_thread(timed, sockets.qemu, listener, mib))
                plain_splice(entry, target)
                plain.append(await asyncio.to_thread(timed, str(rig.root / "plain"), listener, mib))
        return tls, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tls, plain = asyncio.run(measure(args.mib, args.rounds))
    for name, figures in (("tunnel, TLS 1.3", tls), ("plain TCP splice", plain)):
        shown = f"median {statistics.median(figures):.0f} MiB/s ({min(figures):.0f}-{max(figures):.0f}, {args.rounds} x {args.mib} MiB)"
        sys.stdout.write(f"{name}: {shown}\n")


if __name__ == "__main__":
    main()
