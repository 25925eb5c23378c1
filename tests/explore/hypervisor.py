"""A migration in libvirt and QEMU: it goes on whatever becomes of the agent that asked for it."""

from collections.abc import Iterator

from msgspec.structs import replace

from nodeagent.core.outgoing import Copying, Ending
from tests.explore.changes import Move, called, copy_lost, placed, resumed, spent, tells
from tests.explore.world import Domain, Event, Has, Host, Job, Phase, World


def hypervisor(world: World, node: int, host: Host, job: Job, *, arrives_paused: bool, locks_bar: bool) -> Iterator[Move]:
    """What the job on this host does next, and how it may go wrong. `arrives_paused`, `locks_bar`: as in `Rules`."""
    there, domain = world.hosts[job.to], _moved(host, job)
    copy = there.copy_of(job.op)
    runs = domain is not None and domain.executes
    over = replace(host, job=None)

    def at(phase: Phase, changed: Host = host) -> World:
        return placed(world, node, replace(changed, job=replace(job, phase=phase)))

    match job.phase:
        case Phase.ASKED:
            if job.tunnel and there.domain is None and job.op in there.listening and runs and not job.stopped and domain is not None:
                incoming = replace(there, domain=Domain(domain.epoch + 1, Has.INCOMING, job.op))
                yield Move("libvirt: the copying begins", placed(at(Phase.COPYING), job.to, incoming))
            else:
                yield Move("libvirt: the copying cannot begin", placed(world, node, called(over, Copying.FAILED)))
        case Phase.COPYING:
            if job.tunnel and copy is not None and runs and not job.stopped and domain is not None:
                switched = tells(replace(host, domain=replace(domain, has=Has.SWITCHED)), Event.SWITCHED)
                yield Move("QEMU: the source switches over", at(Phase.SWITCHED, switched))
            else:
                failed = copy_lost(placed(world, node, called(over, Copying.FAILED)), job.to, job.op)
                yield Move("libvirt: the copying fails, the source runs on", failed)
        case Phase.SWITCHED:
            if job.tunnel and copy is not None and domain is not None:
                arrived = replace(there, domain=replace(copy, has=Has.ARRIVED if arrives_paused else Has.RUNNING))
                yield Move("QEMU: the copy has arrived", placed(at(Phase.ARRIVED), job.to, arrived))
            else:
                yield Move("libvirt: the last step fails", copy_lost(at(Phase.GOES_BACK), job.to, job.op))
        case Phase.ARRIVED:
            if job.tunnel:
                yield Move("libvirt: the source's side hears of the arrival", at(Phase.ACKNOWLEDGED))
            else:
                yield Move("libvirt: the answer is lost, taken for a failure", at(Phase.GOES_BACK))
        case Phase.ACKNOWLEDGED:
            written = host if domain is None else replace(host, record=Ending.MIGRATED)
            yield Move("libvirt writes down that it migrated", at(Phase.WRITTEN, written))
        case Phase.WRITTEN:
            gone = over if domain is None else tells(replace(over, domain=None), Event.MIGRATED)
            yield Move("libvirt ends the source, the call returns", placed(world, node, called(gone, Copying.RETURNED)))
            if world.budget.libvirt:
                lost = spent(placed(world, node, called(gone, Copying.FAILED)), "libvirt")
                yield Move("libvirt ends the source, the call fails", lost, fault=True)
        case Phase.GOES_BACK if domain is None or not domain.frozen:
            barred = domain is None or (locks_bar and world.locked_against(node))
            after = over if barred else resumed(over)
            yield Move("libvirt lets the source run on, the call fails", placed(world, node, called(after, Copying.FAILED)))
        case Phase.GOES_BACK:
            pass
    if world.budget.libvirt:
        yield from _faults(world, node, host, job)


def _faults(world: World, node: int, host: Host, job: Job) -> Iterator[Move]:
    over = replace(host, job=None)
    if job.phase is Phase.COPYING:
        broken = copy_lost(placed(world, node, called(over, Copying.FAILED)), job.to, job.op)
        yield Move("libvirt: the copying breaks", spent(broken, "libvirt"), fault=True)
    if job.phase in (Phase.SWITCHED, Phase.ARRIVED):
        lost = placed(world, node, replace(host, job=replace(job, phase=Phase.GOES_BACK)))
        lost = copy_lost(lost, job.to, job.op) if job.phase is Phase.SWITCHED else lost
        yield Move("libvirt: its last answer is lost, taken for a failure", spent(lost, "libvirt"), fault=True)
    domain = _moved(host, job)
    if job.phase is Phase.GOES_BACK and domain is not None and not domain.frozen:
        stays = placed(world, node, called(over, Copying.FAILED))
        yield Move("libvirt: the call fails and the source stays switched over", spent(stays, "libvirt"), fault=True)
    early = called(host, Copying.FAILED)
    if early is not host:
        yield Move("libvirt: the call fails while its work goes on", spent(placed(world, node, early), "libvirt"), fault=True)


def _moved(host: Host, job: Job) -> Domain | None:
    """The domain that the job is about; another may have come in its place."""
    return host.domain if host.domain is not None and host.domain.epoch == job.epoch else None
