"""The source's agent in a handoff: nodeagent.engine.outgoing (`_step` and its acts), its evidence and its copy (outgoing_evidence,
outgoing_copy) and observer, from await to await."""

from collections.abc import Iterator

from msgspec.structs import replace

from hostler.model.copy import Copy, Stage
from hostler.model.owner import OwnerState
from nodeagent.core.observed import Locks
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence
from tests.explore.changes import (
    Move,
    cuts,
    destroyed,
    driven,
    dropped,
    keeps,
    may_execute,
    placed,
    resumed,
    spent,
)
from tests.explore.rules import Rules
from tests.explore.world import (
    NODES,
    OPERATIONS,
    Ask,
    At,
    Drive,
    Event,
    Handoff,
    Has,
    Host,
    Job,
    Memory,
    Message,
    Phase,
    World,
)


class SourceMoves:
    """Called with a host: what its agent does next about the VM that leaves."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def __call__(self, world: World, node: int, host: Host) -> Iterator[Move]:
        if not host.up:
            if not host.off and (host.zombie is None or not self._rules.one_agent):
                yield Move(f"{NODES[node]}'s agent is started again", placed(world, node, _restarted(host)))
            return
        if host.memory.events:
            heard = replace(host, memory=_heard(host.memory))
            yield Move(f"{NODES[node]}'s agent hears {host.memory.events[0]}", placed(world, node, heard))
        yield from self.drives(world, node, host)

    def drives(self, world: World, node: int, host: Host) -> Iterator[Move]:
        for drive in host.memory.drives:
            handoff = host.handoff(drive.op)
            if handoff is None:
                raise RuntimeError("a drive without a handoff")
            yield from self._drive(world, node, host, drive, handoff)

    def begun(self, host: Host, message: Message, to: int) -> Host | None:
        """After StartOutgoing; None: refused."""
        if host.handoff(message.op) is not None:
            return host
        if host.epoch != message.epoch or host.domain is None or host.domain.has is not Has.RUNNING:
            return None
        handoff = Handoff(message.op, to, message.epoch, message.revision, Stage.PREPARED)
        memory = replace(host.memory, drives=(*host.memory.drives, Drive(message.op)))
        return replace(host, handoffs=(*host.handoffs, handoff), memory=memory, order=message.order, incoming=-1)

    def learns(self, world: World, node: int, drive: Drive) -> World:
        """The answer to its CommitHandoff."""
        owner = world.store.read_owner()
        world = placed(world, node, driven(world.hosts[node], replace(drive, at=At.TOP, owner=owner)))
        if owner.owner.state is OwnerState.COMMITTED and owner.owner.operation_id == OPERATIONS[drive.op]:
            source, destination = world.store.ends(drive.op)
            if world.linked(source, destination):
                world = replace(world, net=world.net | {Message(Ask.NOTE_COMMITTED, drive.op, destination)})
        return world

    def shown(self, host: Host, handoff: Handoff) -> Copy:
        """`report`: what the source says of its copy."""
        memory = host.memory
        if memory.switched and memory.ending is Ending.UNTOLD:
            return Copy.SWITCHED
        copy = standing(host)
        if copy is not None:
            return copy
        written = host.record if handoff.mark else Ending.UNTOLD
        drive = memory.drive(handoff.op)
        return self._rules.gone_copy(handoff.record, memory.ending, written, Copying.NOT_BEGUN if drive is None else drive.copying)

    def _drive(self, world: World, node: int, host: Host, drive: Drive, handoff: Handoff) -> Iterator[Move]:
        who = f"{NODES[node]}, migration {drive.op + 1}:"
        memory = host.memory

        def now(changed: Drive) -> World:
            return placed(world, node, driven(host, changed))

        if handoff.stage in (Stage.FINISHED, Stage.ABORTED) and self._rules.let_go_heeded and drive.at is not At.ENDING:
            yield Move(f"{who} was ended with the host's other handoffs, and lets go", _over(world, node, host, drive, handoff.stage))
            return
        if drive.at is not At.ENDING and world.heard(node):
            read = world.store.read_owner()
            if drive.owner != read:
                yield Move(
                    f"{who} reads the owner record, {read.owner.state.value} under epoch {read.owner.epoch}",
                    now(replace(drive, owner=read)),
                )
        if not drive.arrived and drive.copying is not Copying.NOT_BEGUN and world.linked(node, handoff.to):
            there = world.hosts[handoff.to]
            copy = there.copy_of(drive.op)
            if there.up and copy is not None and copy.has is not Has.INCOMING:
                yield Move(f"{who} hears that the copy has arrived", now(replace(drive, arrived=True)))
        if self._rules.lockless and host.record is Ending.MIGRATED and handoff.mark and not drive.leaving and drive.at is not At.ENDING:
            yield Move(f"{who} reads that libvirt ends the source", now(replace(drive, leaving=True)))
        match drive.at:
            case At.TOP if memory.switched and memory.ending is Ending.UNTOLD:
                yield from self._act(world, node, host, replace(drive, copy=Copy.SWITCHED), handoff)
            case At.TOP if drive.owner is not None:
                seen = standing(host)
                if seen is None:
                    yield Move(f"{who} finds no domain", now(replace(drive, at=At.GONE, told=memory.ending, looked=drive.copying)))
                else:
                    yield Move(f"{who} finds {seen.value}", now(replace(drive, at=At.LOOKED, copy=seen, looked=drive.copying)))
                if world.budget.libvirt:
                    blind = now(replace(drive, at=At.LOOKED, copy=Copy.UNKNOWN, looked=drive.copying))
                    yield Move(f"{who} gets no answer from libvirt", spent(blind, "libvirt"), fault=True)
            case At.GONE | At.LOOKED if self._rules.looks_whole and drive.looked is not drive.copying:
                anew = replace(drive, at=At.TOP, copy=Copy.UNKNOWN, told=Ending.UNTOLD, looked=Copying.NOT_BEGUN)
                yield Move(f"{who} looks again, the call has ended meanwhile", now(anew))
            case At.GONE:
                written = host.record if handoff.mark else Ending.UNTOLD
                gone = self._rules.gone_copy(handoff.record, drive.told, written, drive.copying)
                yield from self._act(world, node, host, replace(drive, copy=gone), handoff)
            case At.LOOKED:
                yield from self._act(world, node, host, drive, handoff)
            case At.COMMITTING if world.heard(node) and not _commits(world, drive.op):
                sent = Message(Ask.COMMIT, drive.op, node, 0, handoff.epoch, handoff.revision)
                yield Move(f"{who} asks for the commit again", replace(world, net=world.net | {sent}))
            case At.ENDING:
                yield Move(f"{who} has finished", _over(world, node, host, drive, Stage.FINISHED))

    def _act(self, world: World, node: int, host: Host, drive: Drive, handoff: Handoff) -> Iterator[Move]:
        """The decision, and its act up to the next await."""
        domain = host.domain
        frozen = domain is not None and domain.frozen
        over = domain is not None and domain.has is Has.SWITCHED and host.job is None
        settled = self._rules.lockless and drive.copy is Copy.SWITCHED and drive.copying is Copying.FAILED and over
        evidence = Evidence(
            drive.owner, drive.copy, frozen, drive.copying, drive.arrived, drive.locks, self._rules.lockless, settled, drive.leaving
        )
        act = self._rules.next_act(handoff.record, evidence)
        top = replace(drive, at=At.TOP, copy=Copy.UNKNOWN, told=Ending.UNTOLD, looked=Copying.NOT_BEGUN)
        idle = driven(host, top)
        says = f"{NODES[node]}, migration {drive.op + 1}: {act.value} ({drive.copy.value}{', frozen' if frozen else ''})"

        def now(after: Host) -> World:
            return placed(world, node, after)

        match act:
            case Act.WAIT:
                after = now(idle)
            case Act.BEGIN_COPY:
                failed = now(driven(host, replace(top, copying=Copying.FAILED)))
                if not world.linked(node, handoff.to):
                    yield Move(f"{says}: the tunnel cannot be opened", failed)
                    return
                if world.budget.libvirt:
                    yield Move(f"{says}: the tunnel cannot be opened", spent(failed, "libvirt"), fault=True)
                copying = Copying.RUNNING if host.job is None else Copying.FAILED
                begun = keeps(driven(host, replace(top, copying=copying)), replace(handoff, stage=Stage.COPYING, mark="0"))
                if host.job is None:
                    begun = replace(
                        begun, job=Job(drive.op, handoff.to, 0 if domain is None else domain.epoch, Phase.ASKED), record=Ending.UNTOLD
                    )
                after = now(begun)
            case Act.FREEZE:
                blind = driven(host, replace(top, locks=None))
                after = now(blind if domain is None else replace(blind, domain=replace(domain, frozen=True)))
            case Act.INSPECT:
                held = any(other.domain is not None and other.domain.locks for other in world.hosts)
                after = now(driven(host, replace(top, locks=Locks.HELD if held else Locks.FREE)))
                says += f", locks {'held' if held else 'free'}"
            case Act.COMMIT:
                sent = Message(Ask.COMMIT, drive.op, node, 0, handoff.epoch, handoff.revision)
                after = now(driven(host, replace(top, at=At.COMMITTING)))
                after = replace(after, net=after.net | {sent}) if world.heard(node) else after
            case Act.KILL:
                wrong = domain is not None and may_execute(world.store, node, domain)
                after = now(destroyed(idle))
                if wrong:
                    after = replace(after, wronged="the owner's guest is killed by a handoff that is over")
            case Act.FINISH:
                open_ones = tuple([(op, Stage.ABORTED if stage is Stage.PREPARED else stage) for op, stage in host.arrivals])
                after = now(replace(dropped(driven(host, replace(top, at=At.ENDING))), arrivals=open_ones))
            case Act.STOP_COPY:
                after = now(idle if host.job is None else replace(idle, job=replace(host.job, stopped=True)))
            case Act.THAW:
                after = now(idle if domain is None else replace(idle, domain=replace(domain, frozen=False)))
            case Act.RESUME if host.job is not None or (self._rules.locks_bar and world.locked_against(node)):
                after = now(idle)
            case Act.RESUME:
                after = now(resumed(idle))
            case Act.ABORTED:
                after = _over(world, node, host, drive, Stage.ABORTED)
            case Act.FAIL:
                after = now(keeps(idle, replace(handoff, stage=Stage.FAILED)))
        yield Move(says, after)


def standing(host: Host) -> Copy | None:
    """The domain as the agent finds it."""
    if host.domain is None:
        return None
    match host.domain.has:
        case Has.RUNNING:
            return Copy.RUNNING
        case Has.SWITCHED:
            return Copy.SWITCHED
        case _:
            return Copy.PAUSED


def _commits(world: World, op: int) -> bool:
    return any(message.op == op and message.ask in (Ask.COMMIT, Ask.COMMIT_WRITE) for message in world.net)


def _over(world: World, node: int, host: Host, drive: Drive, stage: Stage) -> World:
    """The run is over: its tasks are cancelled, the tunnel is closed."""
    handoff = host.handoff(drive.op)
    if handoff is None:
        raise RuntimeError("a run without a handoff")
    drives = tuple([other for other in host.memory.drives if other.op != drive.op])
    after = keeps(replace(host, memory=replace(host.memory, drives=drives)), replace(handoff, stage=stage))
    return cuts(placed(world, node, after), drive.op)


def _restarted(host: Host) -> Host:
    """`run`: what the journal holds is taken up; a handoff without a definition has been finished."""
    drives: list[Drive] = []
    handoffs: list[Handoff] = []
    for handoff in host.handoffs:
        if handoff.stage in (Stage.FINISHED, Stage.ABORTED):
            handoffs.append(handoff)
        elif host.epoch:
            drives.append(Drive(handoff.op, Copying.NOT_BEGUN if handoff.stage is Stage.PREPARED else Copying.FAILED))
            handoffs.append(handoff)
        else:
            handoffs.append(replace(handoff, stage=Stage.FINISHED))
    return replace(host, up=True, memory=Memory(tuple(drives)), handoffs=tuple(handoffs))


def _heard(memory: Memory) -> Memory:
    """`Observer._take`."""
    event, rest = memory.events[0], memory.events[1:]
    match event:
        case Event.SWITCHED:
            return replace(memory, events=rest, switched=True)
        case Event.RESUMED:
            return replace(memory, events=rest, switched=False)
        case Event.MIGRATED:
            return replace(memory, events=rest, ending=Ending.MIGRATED)
        case Event.ENDED:
            return replace(memory, events=rest, ending=Ending.OTHERWISE)
