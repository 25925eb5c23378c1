"""What is special to a host's requests: a standalone host knows no flavors, and a volume is on this host or nowhere."""

from collections.abc import Iterator

from hostler.api.type.v1 import vm_pb2, volume_pb2
from hostler.errors import Violation
from hostler.server import request_checks


def vm(wanted: vm_pb2.VM) -> Iterator[Violation]:
    """The wished VM's own form, without a flavor."""
    if wanted.flavor:
        yield Violation("vm.flavor", "a standalone host knows no flavors; give vcpus and memory_mib")
        return
    yield from request_checks.vm(wanted)


def volume(wanted: volume_pb2.Volume, node_id: str) -> Iterator[Violation]:
    """The wished volume's own form."""
    yield from request_checks.resource("volume.pool", wanted.pool, "pools")
    yield from request_checks.between("volume.size_mib", wanted.size_mib, 0, request_checks.MAX_VOLUME_MIB)
    yield from request_checks.image("volume.image", wanted.image)
    if wanted.node and wanted.node != f"nodes/{node_id}":
        yield Violation("volume.node", f"this host is nodes/{node_id}; leave the node empty")
