"""What a fenced host does before the cluster hears it again: every guest of ours is ended, and what belongs to other nodes now is forgotten.

A person has said that this host is off, and the cluster has gone on without it: its VMs may run elsewhere. So nothing is asked about a guest
before it is ended; the owner record is read only for the definition that is left. Volumes are never touched here.

A command that came before the word of the fence may be in the middle of a start, and the record may let it: so everything is ended once
more under each VM's lock, and nothing new is taken in until the cluster has heard that this host is laid down and the host has looked again
what is not its own. That it is at this is on its disk: a process that ends in between leaves the rest to the next one.
"""

import structlog

from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.ports import Hypervisor, OwnerAuthority

log = structlog.get_logger()


class LayingDown:
    """First `lay_down`, then the cluster hears of it, then `look_again`. Each may be repeated; raises HypervisorUnavailable, AuthorityUnavailable:
    try again."""

    def __init__(
        self, node_id: str, hypervisor: Hypervisor, authority: OwnerAuthority, state: HostState, incoming: IncomingHandoffs
    ) -> None:
        self._node_id = node_id
        self._hypervisor = hypervisor
        self._authority = authority
        self._state = state
        self._incoming = incoming

    async def lay_down(self) -> None:
        """After it no domain of ours is left, and none comes."""
        await self._state.begin_laying_down()
        for domain in await self._hypervisor.domains():
            if domain.tag is not None:
                log.warning("fenced: guest ended", vm_uid=domain.tag.vm_uid, epoch=domain.tag.epoch)
                await self._hypervisor.kill(domain.tag.vm_uid)
                await self._hypervisor.destroy(domain.tag.vm_uid)
        for vm_uid in list(self._state.definitions):
            async with self._state.vm_lock(vm_uid):
                await self._let_go(vm_uid)

    async def look_again(self) -> None:
        """Once the cluster has heard of it, and starts its VMs elsewhere no more: forget those that were. Nothing to do if it was not laid down."""
        if not self._state.laying_down:
            return
        for vm_uid in list(self._state.definitions):
            async with self._state.vm_lock(vm_uid):
                await self._forget_anothers(vm_uid)
        await self._state.end_laying_down()

    async def _let_go(self, vm_uid: str) -> None:
        """End its handoffs and what has come to be here since; keep its definition only if it is this host's VM still."""
        for handoff in [h for h in self._state.incoming.values() if h.vm_uid == vm_uid]:
            await self._incoming.close(handoff.operation_id)
        await self._hypervisor.kill(vm_uid)
        await self._hypervisor.destroy(vm_uid)
        await self._state.end_handoffs_of(vm_uid)
        await self._forget_anothers(vm_uid)

    async def _forget_anothers(self, vm_uid: str) -> None:
        read = await self._authority.owner(vm_uid)
        if read is None or read.owner.node_id != self._node_id:
            await self._state.drop_definition(vm_uid)
