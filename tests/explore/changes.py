"""What several kinds of moves change in the same way."""

from msgspec.structs import replace

from hostler.model.owner import OwnerState
from nodeagent.core.outgoing import Copying, Ending
from tests.explore.world import (
    NODES,
    OF_DESTINATION,
    OF_SOURCE,
    OPERATIONS,
    Ask,
    Decision,
    Domain,
    Drive,
    Driver,
    Event,
    Handoff,
    Has,
    Host,
    Memory,
    Message,
    Proofs,
    Store,
    Value,
    World,
)

IDLE = Driver()


class Move(Value, frozen=True):
    """One thing that happens, in a sentence. `fault`: it costs budget, and nobody may rely on it."""

    says: str
    world: World
    fault: bool = False


def placed(world: World, node: int, host: Host) -> World:
    """With that host in its place."""
    hosts = world.hosts
    return replace(world, hosts=(*hosts[:node], host, *hosts[node + 1 :]))


def spent(world: World, what: str) -> World:
    return replace(world, budget=replace(world.budget, **{what: getattr(world.budget, what) - 1}))


# ---- the driver


def decides(world: World, op: int, decision: Decision) -> World:
    return replace(world, driver=Driver(op, decision=decision, proofs=_proofs(world, op)))


def proved(world: World, node: int) -> World:
    """The driver is answered for a fenced node: what it writes in this step rests on that (`FencedNodes.proofs`)."""
    driver = world.driver
    if driver is None or not world.store.fenced(node) or any(name == NODES[node] for name, _ in driver.proofs):
        return world
    return replace(world, driver=replace(driver, proofs=(*driver.proofs, (NODES[node], world.store.revision_of_node(node)))))


def _proofs(world: World, op: int) -> Proofs:
    return world.driver.proofs if world.driver is not None and world.driver.op == op else ()


def waits(world: World, message: Message) -> bool:
    """Whether the driver waits for the answer to this very message."""
    driver = world.driver
    return driver is not None and not message.late and driver.asked is message.ask and driver.op == message.op


def gives(world: World, message: Message, decision: Decision) -> World:
    return decides(world, message.op, decision) if waits(world, message) else world


def asks_again(world: World, message: Message) -> World:
    """The node could not: the driver, if it waits, asks later."""
    return replace(world, driver=IDLE) if waits(world, message) else world


def asks(world: World, op: int, ask: Ask, node: int | None = None) -> World:
    """The driver sends it; what cannot arrive is lost, and where the link is broken the call fails at once."""
    vm = world.store.vm
    if node is None:
        source, destination = world.store.ends(op)
        node = source if ask in OF_SOURCE else destination if ask in OF_DESTINATION else -1
    message = Message(
        ask,
        op,
        node,
        0,
        vm.record.owner.epoch,
        vm.revision if ask in (Ask.START, Ask.INSPECT_COLD) else 0,
        world.store.order(op),
        incarnation=world.store.incarnation(node),
    )
    fenced = world.store.fenced(node)
    if not fenced and (world.hosts[node].dark or not world.heard(node)):
        return replace(world, driver=IDLE)
    return replace(
        world, driver=Driver(op, asked=ask, node=node, proofs=_proofs(world, op)), net=world.net if fenced else world.net | {message}
    )


def given_up(world: World) -> World:
    """Nobody waits any more for what is on its way: it will come late."""
    late: dict[Message, Message] = {}

    def aged(message: Message) -> Message:
        if message.late or message.ask in (Ask.REPORT, Ask.NOTE_COMMITTED, Ask.COMMIT, Ask.COMMIT_WRITE, Ask.STEP_WRITE):
            return message
        if message not in late:
            number = 1
            while replace(message, late=number) in world.net:
                number += 1
            late[message] = replace(message, late=number)
        return late[message]

    net = frozenset([aged(message) for message in world.net])
    hosts = tuple(
        host
        if host.task is None and host.starting is None
        else replace(
            host,
            task=None if host.task is None else replace(host.task, message=aged(host.task.message)),
            starting=None if host.starting is None else replace(host.starting, message=aged(host.starting.message)),
        )
        for host in world.hosts
    )
    return replace(world, driver=IDLE, net=net, hosts=hosts)


# ---- a host


def tells(host: Host, event: Event) -> Host:
    """To its agent; what was never sent away from there is nobody's business."""
    if not host.up or not host.handoffs:
        return host
    return replace(host, memory=replace(host.memory, events=(*host.memory.events, event)))


def ended(host: Host, ending: Ending) -> Host:
    """Its domain has ended."""
    record = ending if host.record is Ending.UNTOLD and host.handoffs else host.record
    return tells(replace(host, domain=None, record=record), Event.ENDED)


def destroyed(host: Host) -> Host:
    return host if host.domain is None else ended(host, Ending.OTHERWISE)


def resumed(host: Host) -> Host:
    domain = host.domain
    if domain is None or domain.has is Has.RUNNING:
        return host
    return tells(replace(host, domain=replace(domain, has=Has.RUNNING)), Event.RESUMED)


def forgetful(host: Host) -> Host:
    """`Observer.forget`: a new copy is about to exist. What was said of an older one has been heard: it came before the answer that it is gone."""
    memory = host.memory
    return replace(host, memory=Memory(memory.drives)) if memory.switched or memory.events or memory.ending is not Ending.UNTOLD else host


def defined(host: Host, epoch: int) -> Host:
    return replace(host, epoch=epoch, incoming=-1)


def buried(host: Host, epoch: int, order: int) -> Host:
    """`HostState.bury`."""
    return replace(host, gone=(epoch, order)) if order and (epoch, order) > host.gone else host


def dropped(host: Host) -> Host:
    """`HostState.drop_definition`."""
    if not host.epoch:
        return host
    return buried(replace(host, epoch=0, incoming=-1, order=0, ran=0), host.epoch, host.order)


def comes_late(host: Host, message: Message) -> bool:
    """`engine.heeding`: a newer command about the VM was heard here."""
    if host.epoch:
        return message.epoch == host.epoch and message.order < host.order
    return (message.epoch, message.order) < host.gone


def driven(host: Host, drive: Drive) -> Host:
    drives = tuple([drive if other.op == drive.op else other for other in host.memory.drives])
    return replace(host, memory=replace(host.memory, drives=drives))


def keeps(host: Host, handoff: Handoff) -> Host:
    return replace(host, handoffs=tuple([handoff if other.op == handoff.op else other for other in host.handoffs]))


def called(host: Host, copying: Copying) -> Host:
    """The migration's call ends, for an agent that still waits for it."""
    if not any(drive.copying is Copying.RUNNING for drive in host.memory.drives):
        return host
    drives = tuple([replace(drive, copying=copying) if drive.copying is Copying.RUNNING else drive for drive in host.memory.drives])
    return replace(host, memory=replace(host.memory, drives=drives))


def cuts(world: World, op: int) -> World:
    """The tunnel of this migration is cut, whichever host sends through it."""
    for node, host in enumerate(world.hosts):
        if host.job is not None and host.job.op == op and host.job.tunnel:
            return placed(world, node, replace(host, job=replace(host.job, tunnel=False)))
    return world


def copy_lost(world: World, node: int, op: int) -> World:
    """What this migration had brought there is gone."""
    host = world.hosts[node]
    return world if host.copy_of(op) is None else placed(world, node, replace(host, domain=None))


def aged(world: World) -> World:
    """The memory of every copy that stands still is stale once another executes."""
    runs = [node for node, host in enumerate(world.hosts) if host.domain is not None and host.domain.executes]
    if not runs:
        return world
    for node, host in enumerate(world.hosts):
        domain = host.domain
        if domain is None or domain.stale or domain.executes or domain.has in (Has.INCOMING, Has.PAUSED) or runs == [node]:
            continue
        world = placed(world, node, replace(host, domain=replace(domain, stale=True)))
    return world


def may_execute(store: Store, node: int, domain: Domain) -> bool:
    """Whether the record lets this copy execute there."""
    owner = store.owner
    if owner.node_id != NODES[node] or owner.epoch != domain.epoch:
        return False
    if owner.state is OwnerState.COMMITTED:
        return domain.op >= 0 and owner.operation_id == OPERATIONS[domain.op]
    return owner.state in (OwnerState.RUNNING, OwnerState.HANDOFF)
