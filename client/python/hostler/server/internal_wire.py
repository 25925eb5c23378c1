"""Internal messages <-> model values: the only place that converts what the two daemons say to each other. Total functions."""

from collections.abc import Iterable, Mapping

from hostler.api.type.v1 import node_pb2, operation_pb2, resources_pb2, volume_pb2
from hostler.internal.v1 import agent_pb2, cluster_link_pb2
from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass, VolumeSpec
from hostler.model.migration_facts import Convergence, Forecast, GuestFacts, MigrationCheck, MigrationFacts, Reception
from hostler.model.node import NodeReport, PoolFacts, VMPower, VMStatus
from hostler.model.owner import Owner, OwnerRead, OwnerState
from hostler.model.quantities import Quantities, at_least_zero, minus

SERVICE_CLASSES = {
    ServiceClass.GUARANTEED: resources_pb2.SERVICE_CLASS_GUARANTEED,
    ServiceClass.BURSTABLE: resources_pb2.SERVICE_CLASS_BURSTABLE,
    ServiceClass.BEST_EFFORT: resources_pb2.SERVICE_CLASS_BEST_EFFORT,
}
CLASSES_BACK = {wire: model for model, wire in SERVICE_CLASSES.items()}


def quantities_to_wire(amounts: Quantities) -> list[resources_pb2.Quantity]:
    """In order of their keys."""
    return [resources_pb2.Quantity(key=key, amount=amount) for key, amount in sorted(amounts.items())]


def quantities_from_wire(amounts: Iterable[resources_pb2.Quantity]) -> dict[str, int]:
    return {one.key: one.amount for one in amounts}


def ledger_to_wire(total: Quantities, reserved: Quantities, unmanaged: Quantities, claimed: Quantities) -> resources_pb2.Ledger:
    """The four measured columns, and the two that follow from them."""
    allocatable = at_least_zero(minus(minus(total, reserved), unmanaged))
    columns: Mapping[str, Quantities] = {
        "total": total,
        "reserved": reserved,
        "unmanaged": unmanaged,
        "allocatable": allocatable,
        "claimed": claimed,
        "free": at_least_zero(minus(allocatable, claimed)),
    }
    ledger = resources_pb2.Ledger()
    for name, amounts in columns.items():
        getattr(ledger, name).extend(quantities_to_wire(amounts))
    return ledger


def domain_to_wire(spec: DomainSpec) -> agent_pb2.DomainSpec:
    return agent_pb2.DomainSpec(
        vm_uid=spec.vm_uid,
        vm_id=spec.vm_id,
        vcpus=spec.vcpus,
        cpu_floor_milli=spec.cpu_floor_milli,
        memory_mib=spec.memory_mib,
        service_class=SERVICE_CLASSES[spec.service_class],
        disks=[agent_pb2.DiskSpec(volume_uid=d.volume_uid, pool_id=d.pool_id, format=d.format) for d in spec.disks],
        nics=[agent_pb2.NicSpec(bridge=n.bridge, mac_address=n.mac_address) for n in spec.nics],
        charged=quantities_to_wire(spec.charged),
    )


def domain_from_wire(spec: agent_pb2.DomainSpec) -> DomainSpec:
    return DomainSpec(
        vm_uid=spec.vm_uid,
        vm_id=spec.vm_id,
        vcpus=spec.vcpus,
        cpu_floor_milli=spec.cpu_floor_milli,
        memory_mib=spec.memory_mib,
        service_class=CLASSES_BACK[spec.service_class],
        disks=tuple(DiskSpec(d.volume_uid, d.pool_id, d.format) for d in spec.disks),
        nics=tuple(NicSpec(n.bridge, n.mac_address) for n in spec.nics),
        charged=quantities_from_wire(spec.charged),
    )


def volume_to_wire(volume: VolumeSpec) -> agent_pb2.VolumeSpec:
    return agent_pb2.VolumeSpec(
        volume_uid=volume.volume_uid, pool_id=volume.pool_id, size_mib=volume.size_mib, image=volume.image, format=volume.format
    )


def volume_from_wire(volume: agent_pb2.VolumeSpec) -> VolumeSpec:
    return VolumeSpec(volume.volume_uid, volume.pool_id, volume.size_mib, volume.image, volume.format)


def status_to_wire(status: VMStatus) -> agent_pb2.VMStatus:
    return agent_pb2.VMStatus(
        vm_uid=status.vm_uid,
        epoch=status.epoch,
        defined=status.defined,
        power=agent_pb2.VMStatus.Power.Value(status.power.value),
        reason=status.reason,
        drift=status.drift,
    )


def status_from_wire(status: agent_pb2.VMStatus) -> VMStatus:
    power = VMPower(agent_pb2.VMStatus.Power.Name(status.power)) if status.power else VMPower.UNKNOWN
    return VMStatus(status.vm_uid, status.epoch, status.defined, power, status.reason, tuple(status.drift))


def report_to_wire(report: HandoffReport) -> agent_pb2.HandoffReport:
    return agent_pb2.HandoffReport(
        node_id=report.node_id,
        operation_id=report.operation_id,
        copy=agent_pb2.HandoffReport.Copy.Value(report.copy.value),
        frozen=report.frozen,
        stage=agent_pb2.HandoffReport.Stage.Value(report.stage.value),
        error=report.error,
        bytes_done=report.bytes_done,
        bytes_total=report.bytes_total,
        rate_bytes_per_s=report.rate_bytes_per_s,
        begin_ms=report.begin_ms,
        suspend_ms=report.suspend_ms,
        resume_ms=report.resume_ms,
        hypervisor_downtime_ms=report.hypervisor_downtime_ms,
        remaining_bytes=report.remaining_bytes,
        dirty_bytes_per_s=report.dirty_bytes_per_s,
        throttle_percent=report.throttle_percent,
        iterations=report.iterations,
        bandwidth_mib_s=report.bandwidth_mib_s,
        max_downtime_ms=report.max_downtime_ms,
    )


def report_from_wire(report: agent_pb2.HandoffReport) -> HandoffReport:
    copy = Copy(agent_pb2.HandoffReport.Copy.Name(report.copy)) if report.copy else Copy.UNKNOWN
    return HandoffReport(
        node_id=report.node_id,
        operation_id=report.operation_id,
        copy=copy,
        stage=Stage(agent_pb2.HandoffReport.Stage.Name(report.stage)),
        frozen=report.frozen,
        error=report.error,
        bytes_done=report.bytes_done,
        bytes_total=report.bytes_total,
        rate_bytes_per_s=report.rate_bytes_per_s,
        begin_ms=report.begin_ms,
        suspend_ms=report.suspend_ms,
        resume_ms=report.resume_ms,
        hypervisor_downtime_ms=report.hypervisor_downtime_ms,
        remaining_bytes=report.remaining_bytes,
        dirty_bytes_per_s=report.dirty_bytes_per_s,
        throttle_percent=report.throttle_percent,
        iterations=report.iterations,
        bandwidth_mib_s=report.bandwidth_mib_s,
        max_downtime_ms=report.max_downtime_ms,
    )


def guest_to_wire(guest: GuestFacts) -> agent_pb2.GuestFacts:
    return agent_pb2.GuestFacts(machine=guest.machine, cpu_xml=guest.cpu_xml, devices=guest.devices)


def guest_from_wire(guest: agent_pb2.GuestFacts) -> GuestFacts:
    return GuestFacts(guest.machine, guest.cpu_xml, tuple(guest.devices))


def facts_to_wire(facts: MigrationFacts) -> agent_pb2.MigrationFacts:
    return agent_pb2.MigrationFacts(
        node_id=facts.node_id,
        hypervisor_answers=facts.hypervisor_answers,
        libvirt_version=facts.libvirt_version,
        qemu_version=facts.qemu_version,
        acceleration=facts.acceleration,
        certificate_left_s=facts.certificate_left_s,
        disks=[agent_pb2.DiskIdentity(volume_uid=uid, identity=identity) for uid, identity in sorted(facts.disks.items())],
        holds_copy=facts.holds_copy,
        guest=guest_to_wire(facts.guest) if facts.guest is not None else None,
        forecast=forecast_to_wire(facts.forecast) if facts.forecast is not None else None,
        machine_refused=facts.reception.machine_refused,
        cpu_refused=facts.reception.cpu_refused,
        devices_missing=facts.reception.devices_missing,
        bridges_missing=facts.bridges_missing,
        sizes=[agent_pb2.DiskSize(volume_uid=uid, size_bytes=size) for uid, size in sorted(facts.size_bytes.items())],
    )


def facts_from_wire(facts: agent_pb2.MigrationFacts) -> MigrationFacts:
    return MigrationFacts(
        node_id=facts.node_id,
        hypervisor_answers=facts.hypervisor_answers,
        libvirt_version=facts.libvirt_version,
        qemu_version=facts.qemu_version,
        acceleration=facts.acceleration,
        certificate_left_s=facts.certificate_left_s,
        disks={disk.volume_uid: disk.identity for disk in facts.disks},
        holds_copy=facts.holds_copy,
        guest=guest_from_wire(facts.guest) if facts.HasField("guest") else None,
        forecast=_forecast_from_wire(facts.forecast) if facts.HasField("forecast") else None,
        reception=Reception(facts.machine_refused, facts.cpu_refused, tuple(facts.devices_missing)),
        bridges_missing=tuple(facts.bridges_missing),
        size_bytes={size.volume_uid: size.size_bytes for size in facts.sizes},
    )


def check_to_wire(check: MigrationCheck) -> operation_pb2.Operation.MigrationCheck:
    return operation_pb2.Operation.MigrationCheck(name=check.name, ok=check.ok, message=check.message, fix=check.fix)


def forecast_to_wire(forecast: Forecast) -> operation_pb2.Operation.MigrationForecast:
    return operation_pb2.Operation.MigrationForecast(
        convergence=operation_pb2.Operation.MigrationForecast.Convergence.Value(forecast.convergence.value),
        dirty_bytes_per_s=forecast.dirty_bytes_per_s,
        dirty_measured=forecast.dirty_measured,
        bandwidth_bytes_per_s=forecast.bandwidth_bytes_per_s,
        bandwidth_known=forecast.bandwidth_known,
        seconds=forecast.seconds,
        downtime_ms=forecast.downtime_ms,
        throttle_percent=forecast.throttle_percent,
        disk_bytes=forecast.disk_bytes,
    )


def _forecast_from_wire(forecast: operation_pb2.Operation.MigrationForecast) -> Forecast:
    return Forecast(
        Convergence(operation_pb2.Operation.MigrationForecast.Convergence.Name(forecast.convergence)),
        forecast.dirty_bytes_per_s,
        forecast.dirty_measured,
        forecast.bandwidth_bytes_per_s,
        forecast.bandwidth_known,
        forecast.seconds,
        forecast.downtime_ms,
        forecast.throttle_percent,
        forecast.disk_bytes,
    )


def owner_to_wire(read: OwnerRead) -> cluster_link_pb2.OwnerRecord:
    owner = read.owner
    return cluster_link_pb2.OwnerRecord(
        vm_uid=read.vm_uid,
        epoch=owner.epoch,
        owner_node_id=owner.node_id,
        owner_incarnation=owner.incarnation,
        state=cluster_link_pb2.OwnerRecord.State.Value(owner.state.value),
        operation_id=owner.operation_id,
        destination_node_id=owner.destination_node_id,
        revision=read.revision,
        read_revision=read.read_revision,
    )


def owner_from_wire(record: cluster_link_pb2.OwnerRecord) -> OwnerRead:
    owner = Owner(
        epoch=record.epoch,
        node_id=record.owner_node_id,
        incarnation=record.owner_incarnation,
        state=OwnerState(cluster_link_pb2.OwnerRecord.State.Name(record.state)),
        operation_id=record.operation_id,
        destination_node_id=record.destination_node_id,
    )
    return OwnerRead(record.vm_uid, owner, record.revision, record.read_revision)


def pool_to_wire(pool: PoolFacts) -> volume_pb2.Pool:
    return volume_pb2.Pool(
        name=f"pools/{pool.pool_id}",
        reach=volume_pb2.Pool.SHARED if pool.shared else volume_pb2.Pool.LOCAL,
        fingerprint=pool.fingerprint,
        total_mib=pool.total_mib,
        free_mib=pool.free_mib,
        lock_kind=volume_pb2.Pool.OFD if pool.ofd_locks else volume_pb2.Pool.NONE,
        images=[volume_pb2.Image(name=name, size_mib=mib) for name, mib in sorted(pool.images.items())],
        foreign_mib=pool.foreign_mib,
        filesystem=pool.filesystem,
    )


def pool_from_wire(pool: volume_pb2.Pool) -> PoolFacts:
    return PoolFacts(
        pool_id=pool.name.removeprefix("pools/"),
        shared=pool.reach == volume_pb2.Pool.SHARED,
        fingerprint=pool.fingerprint,
        total_mib=pool.total_mib,
        free_mib=pool.free_mib,
        ofd_locks=pool.lock_kind == volume_pb2.Pool.OFD,
        images={image.name: image.size_mib for image in pool.images},
        foreign_mib=pool.foreign_mib,
        filesystem=pool.filesystem,
    )


def node_to_wire(report: NodeReport) -> node_pb2.Node:
    """The node as its agent shows it; name, health and account. State and etag are the scheduler's."""
    return node_pb2.Node(
        name=f"nodes/{report.node_id}",
        health=node_pb2.Node.HYPERVISOR_DOWN if report.hypervisor_down else node_pb2.Node.READY,
        reason=report.reason,
        ledger=ledger_to_wire(report.total, report.reserved, report.unmanaged, report.claimed),
        pools=[pool_to_wire(pool) for pool in report.pools],
        networks=list(report.networks),
        acceleration=node_pb2.Node.Acceleration.Value(report.acceleration or "ACCELERATION_UNSPECIFIED"),
        hypervisor=report.hypervisor,
        agent_version=report.agent_version,
        confinement=report.confinement,
        vm_count=sum(status.defined for status in report.vms),
        unmanaged_count=report.unmanaged_count,
        stale=report.hypervisor_down,
    )


def inventory_to_wire(report: NodeReport) -> agent_pb2.InventoryReport:
    return agent_pb2.InventoryReport(node=node_to_wire(report), vms=[status_to_wire(status) for status in report.vms])


def inventory_from_wire(report: agent_pb2.InventoryReport) -> NodeReport:
    node = report.node
    acceleration = node_pb2.Node.Acceleration.Name(node.acceleration) if node.acceleration else ""
    return NodeReport(
        node_id=node.name.removeprefix("nodes/"),
        total=quantities_from_wire(node.ledger.total),
        reserved=quantities_from_wire(node.ledger.reserved),
        unmanaged=quantities_from_wire(node.ledger.unmanaged),
        claimed=quantities_from_wire(node.ledger.claimed),
        pools=tuple(pool_from_wire(pool) for pool in node.pools),
        networks=tuple(node.networks),
        acceleration=acceleration,
        hypervisor=node.hypervisor,
        agent_version=node.agent_version,
        confinement=node.confinement,
        unmanaged_count=node.unmanaged_count,
        hypervisor_down=node.stale,
        reason=node.reason,
        vms=tuple(status_from_wire(status) for status in report.vms),
    )
