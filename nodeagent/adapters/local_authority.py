"""Standalone: this host is the only owner there is. Its own definitions say under which epoch a VM may run; nothing is ever handed off."""

from hostler.model.owner import Owner, OwnerRead, OwnerState
from nodeagent.ports import AuthorityUnavailable


class LocalAuthority:
    """Implements OwnerAuthority; `epochs` has the epoch of every VM that may run, by uid, kept by the standalone engine."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self.epochs: dict[str, int] = {}

    async def owner(self, vm_uid: str) -> OwnerRead | None:
        epoch = self.epochs.get(vm_uid)
        return None if epoch is None else OwnerRead(vm_uid, Owner(epoch, self._node_id, "standalone", OwnerState.RUNNING), epoch, epoch)

    async def await_commit(self, vm_uid: str, operation_id: str) -> OwnerRead | None:
        raise AuthorityUnavailable("a standalone host receives nothing")

    async def commit_handoff(self, vm_uid: str, operation_id: str, owner_revision: int) -> OwnerRead:
        raise AuthorityUnavailable("a standalone host hands nothing off")
