"""`python -m tests.sweep.agent CONTROL --config FILE`: the ordinary node agent, with gates around its ports and one pool more, without locks.

Everything is the product's own but what the ports are wrapped in: the hypervisor, the state files, the tunnel, and the other agent and the scheduler
as this agent sees them get gates (`pause`); the pool `lockless` exists only here (`lockless`).
"""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

from hostler.server.clock import Clock
from hostler.server.tls import ServerTls
from nodeagent import __main__ as daemon
from nodeagent import app, parts
from nodeagent.adapters.grpc_peer import GrpcPeer
from nodeagent.adapters.grpc_scheduler import GrpcScheduler
from nodeagent.app import Parts
from nodeagent.core import domain_xml
from nodeagent.ports import Hypervisor, StateFiles, Tunnel, Volumes
from nodeagent.settings import Settings
from tests.sweep import lockless
from tests.sweep.pause import HYPERVISOR, PEER, SCHEDULER, TUNNEL, Gated, Gates

HANDOFFS = ("incoming", "outgoing")


class GatedFiles:
    """State files with a gate before and after a handoff's stage is written: `before save outgoing COPYING`."""

    def __init__(self, files: StateFiles, gates: Gates) -> None:
        self._files = files
        self._gates = gates

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 whatever the files have
        return getattr(self._files, name)

    async def save(self, kind: str, key: str, value: bytes) -> None:
        what = f"save {kind} {json.loads(value)['stage']}" if kind in HANDOFFS else f"save {kind}"
        await self._gates.at(f"before {what}")
        await self._files.save(kind, key, value)
        await self._gates.at(f"after {what}")


def main() -> int:
    control = Path(sys.argv.pop(1))
    gates_of: dict[str, Gates] = {}
    open_parts = parts.open_parts

    @asynccontextmanager
    async def gated(settings: Settings, tls: ServerTls, clock: Clock) -> AsyncIterator[Parts]:
        gates = gates_of["me"] = Gates(tls.material.principal.id, control)
        async with open_parts(replace(settings, pools={**settings.pools, **lockless.pools()}), tls, clock) as real:
            yield Parts(
                cast(Hypervisor, Gated(real.hypervisor, gates, HYPERVISOR)),
                cast(Volumes, lockless.LocklessVolumes(real.volumes)),
                real.facts,
                cast(Tunnel, Gated(real.tunnel, gates, TUNNEL)),
                cast(StateFiles, GatedFiles(real.files, gates)),
            )

    with (
        mock.patch.object(parts, "open_parts", gated),
        mock.patch.object(app, "GrpcScheduler", lambda node, channels: Gated(GrpcScheduler(node, channels), gates_of["me"], SCHEDULER)),
        mock.patch.object(app, "GrpcPeer", lambda connect: Gated(GrpcPeer(connect), gates_of["me"], PEER)),
        mock.patch.object(domain_xml, "domain_xml", lockless.shareable(domain_xml.domain_xml)),
    ):
        return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
