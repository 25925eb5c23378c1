"""Run by a test as a program of its own, because what it looks for ends a process: `looking.py URI` looks at a libvirtd for ever, many looks at once.

Says on a line of its own whenever the looks begin to be answered ("answered"), and whenever none is any more ("hung").
"""

import asyncio
import sys

from hostler.server.clock import SystemClock
from nodeagent.adapters.libvirt_hypervisor import LibvirtHypervisor, LibvirtSettings
from nodeagent.core.domain_xml import Acceleration
from nodeagent.ports import HypervisorUnavailable

LOOKS_AT_ONCE = 3
"""Of each kind: those of a kind wait for each other, those of different kinds do not."""
BETWEEN_S = 0.01


class Looks:
    def __init__(self, hypervisor: LibvirtHypervisor) -> None:
        self._kinds = {"domains": hypervisor.domains, "shapes": hypervisor.shapes, "machine types": hypervisor.facts}
        self._answered = dict.fromkeys(self._kinds, False)
        self._said = ""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for kind in self._kinds:
                for number in range(LOOKS_AT_ONCE):
                    group.create_task(self._look(kind), name=f"{kind} {number}")

    async def _look(self, kind: str) -> None:
        while True:
            try:
                await self._kinds[kind]()
                self._answered[kind] = True
            except HypervisorUnavailable:
                self._answered[kind] = False
            self._say()
            await asyncio.sleep(BETWEEN_S)

    def _say(self) -> None:
        answers = set(self._answered.values())
        word = {frozenset({True}): "answered", frozenset({False}): "hung"}.get(frozenset(answers), self._said)
        if word != self._said:
            self._said = word
            print(word, flush=True)


async def main(uri: str) -> None:
    hypervisor = LibvirtHypervisor(LibvirtSettings(uri=uri), SystemClock(), Acceleration.EMULATION)
    async with hypervisor.connected():
        await Looks(hypervisor).run()


asyncio.run(main(sys.argv[1]))
