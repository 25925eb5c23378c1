"""`tunnel_end.py NODE CERTIFICATES ADDRESS DIRECTORY`: Hostler's migration tunnel without Hostler, for plain libvirt to migrate through.

So the path is the same on both sides of the comparison (unix sockets, TLS 1.3, the same splice) and what differs is who drives. One process per host;
a command per line on stdin: `incoming OP SOURCE` answers with the endpoint, `outgoing OP ENDPOINT DESTINATION` with the two sockets, `close OP`.
"""

import asyncio
import grp
import sys
from pathlib import Path

from hostler.server import logs
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.tls import TlsFiles
from hostlerlab.cluster import CLUSTER
from hostlerlab.hosts import LIBVIRT_SOCKET, QEMU_USER
from nodeagent.adapters.tls_tunnel import TlsTunnel


async def serve(node: str, certificates: str, address: str, directory: str) -> None:
    """Until stdin closes."""
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    async with TlsTunnel(
        Principal(CLUSTER, PrincipalKind.NODE, node),
        TlsFiles.in_directory(Path(certificates)),
        listen_host=address,
        directory=Path(directory),
        libvirt_socket=lambda: str(LIBVIRT_SOCKET),
        qemu_gid=grp.getgrnam(QEMU_USER).gr_gid,
    ) as tunnel:
        print("ready", flush=True)
        while line := await told.readline():
            match line.decode().split():
                case ["incoming", operation, source]:
                    print(await tunnel.open_incoming(operation, source), flush=True)
                case ["outgoing", operation, endpoint, destination]:
                    sockets = await tunnel.open_outgoing(operation, endpoint, destination)
                    print(sockets.libvirt, sockets.qemu, flush=True)
                case ["close", operation]:
                    await tunnel.close_outgoing(operation)
                    await tunnel.close_incoming(operation)
                    print("closed", flush=True)


if __name__ == "__main__":
    logs.configure(level="warning", stream=sys.stderr)  # stdout is for answers alone
    asyncio.run(serve(*sys.argv[1:5]))
