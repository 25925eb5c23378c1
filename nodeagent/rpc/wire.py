"""What this host shows -> API messages: VMs, volumes and operations with what only the agent knows of them (etag, staleness, what is waited for)."""

from hostler.api.type.v1 import operation_pb2, vm_pb2, volume_pb2
from hostler.model.records import Kept, OperationRecord, VolumeRecord
from hostler.server import api_wire
from nodeagent.core.shown import VMView
from nodeagent.core.standalone import etag
from nodeagent.engine.standalone import StandaloneHost


def vm_to_wire(view: VMView) -> vm_pb2.VM:
    return api_wire.vm_to_wire(view.vm, view.etag, view.stale)


def volume_to_wire(kept: Kept[VolumeRecord]) -> volume_pb2.Volume:
    return api_wire.volume_to_wire(kept.record, etag(kept.record.uid, kept.revision))


def operation_to_wire(host: StandaloneHost, operation: OperationRecord) -> operation_pb2.Operation:
    """With the present etag of the VM that it ended with, if that is still there."""
    vm = None
    if operation.final_vm is not None:
        kept = host.journal.records.vms.get(operation.target_id)
        present = etag(kept.record.uid, kept.revision) if kept is not None and kept.record.uid == operation.final_vm.uid else ""
        vm = api_wire.vm_to_wire(operation.final_vm, present)
    return api_wire.operation_to_wire(operation, vm, host.waiting_for(operation.operation_id))


def accepted_to_wire(host: StandaloneHost, operation: OperationRecord, validate_only: bool) -> operation_pb2.Operation:
    """The answer to a mutation. One that was only to be validated has made no operation, and shows no name."""
    message = operation_to_wire(host, operation)
    if validate_only:
        message.name = ""
    return message
