"""What may happen next. A move is everything from one await of an engine to its next, so others may move wherever the engine lets them.

Mirrored by hand, line by line: nodeagent.engine.outgoing (`_step` and its acts), incoming (`resume_if_committed`, `abort`), observer, and
scheduler.engine.flows.migration. The decisions themselves are the product's own (`Rules`). A fault is a move that costs budget.
A destination that learns of its commit by its own question does what a NoteCommitted that arrives at once makes it do, so that is no move of its own.
Locks are believed when asked and stop nobody: the protocol alone has to keep the second writer away.
"""

from collections.abc import Iterator
from dataclasses import replace

from hostler.errors import FailedPrecondition, HostlerError
from hostler.model.copy import IN_DOUBT, Copy, HandoffReport, Stage
from hostler.model.node import VMStatus
from hostler.model.owner import OwnerState
from nodeagent.core.observed import Locks, Power
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence
from scheduler.core.steps import ABORTING, COMMITTED, COPYING, DESTINATION_READY, RESERVED
from tests.explore.changes import Move, arriving_lost, cuts, decides, gives, keeps, source_ends, spent, tells, waits
from tests.explore.hosts import HostMoves
from tests.explore.rules import Rules
from tests.explore.world import (
    ASKED_OF,
    DESTINATION,
    MIGRATIONS,
    OPERATIONS,
    SOURCE,
    Arriving,
    Ask,
    At,
    Decision,
    Doing,
    Drive,
    Driver,
    Event,
    Handoff,
    Job,
    Memory,
    Message,
    Phase,
    Store,
    Task,
    World,
)


class Moves:
    """The moves under one set of rules. Transactions are remembered by the store that they were decided on."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._written: dict[tuple[Store, Store, Decision], Store | None] = {}
        self._wanted: dict[tuple[Store, Decision], bool] = {}
        self._hosts = HostMoves(rules, self._write, self._wants)

    def __call__(self, world: World) -> Iterator[Move]:
        for move in self._all(world):
            yield replace(move, world=_aged(move.world))

    def _all(self, world: World) -> Iterator[Move]:
        yield from self._people(world)
        yield from self._driver(world)
        yield from self._messages(world)
        yield from self._source(world)
        yield from self._destination(world)
        yield from self._hypervisor(world)
        yield from self._hosts(world)
        yield from _faults(world)

    # ---- the store

    def _wants(self, store: Store, decision: Decision) -> bool:
        key = (store, decision)
        if key not in self._wanted:
            try:
                self._wanted[key] = self._rules.decide(store.state, decision) is not None
            except HostlerError:
                self._wanted[key] = False
        return self._wanted[key]

    def _write(self, store: Store, decision: Decision, seen: Store | None = None) -> Store | None:
        """The store after what was decided on `seen` (by default: now); None: refused by a guard, or nothing was wanted."""
        seen = store if seen is None else seen
        key = (store, seen, decision)
        if key not in self._written:
            transaction = self._rules.decide(seen.state, decision) if self._wants(seen, decision) else None
            self._written[key] = None if transaction is None else store.write(transaction)
        return self._written[key]

    # ---- people

    def _people(self, world: World) -> Iterator[Move]:
        budget = world.budget
        begun = sum(world.store.operation(op) is not None for op in MIGRATIONS)
        runs = world.store.owner.state is OwnerState.RUNNING and not world.colds  # nor what is off, nor what a StartVM made, is moved here
        if budget.migrations and runs and (after := self._write(world.store, ("migrate", begun, ""))) is not None:
            spent = replace(budget, migrations=budget.migrations - 1)
            yield Move(f"migration {begun + 1} is accepted: the owner record says HANDOFF", replace(world, store=after, budget=spent))
        for op in range(begun):
            if budget.cancels and (after := self._write(world.store, ("cancel", op, ""))) is not None:
                spent = replace(budget, cancels=budget.cancels - 1)
                yield Move(f"somebody cancels migration {op + 1}", replace(world, store=after, budget=spent), fault=True)

    # ---- the scheduler's driver: flows.migration

    def _driver(self, world: World) -> Iterator[Move]:
        driver = world.driver
        if driver is None:
            yield Move("a scheduler takes the lead", replace(world, driver=Driver(), call=world.call + 1))
        elif driver.seen is not None and driver.decision is not None:
            after = self._write(world.store, driver.decision, driver.seen)
            if after is not None:
                yield Move(f"the driver's transaction `{driver.decision[0]}` is written", replace(world, store=after, driver=Driver()))
            else:
                yield Move(f"the driver's transaction `{driver.decision[0]}` is refused", decides(world, driver.op, driver.decision))
        elif driver.decision is not None:
            if self._wants(world.store, driver.decision):
                yield Move(f"the driver decides on `{driver.decision[0]}`", replace(world, driver=replace(driver, seen=world.store)))
            else:
                yield Move(f"the driver sees that `{driver.decision[0]}` is out of date", replace(world, driver=Driver()))
        elif driver.asked is not None:
            node = driver.node or ASKED_OF[driver.asked]
            if world.store.fenced(node) or (self._rules.silence_is_proof and not world.agent_up(node)):
                yield from self._gateway_answers(world, Message(driver.asked, driver.op, world.call, node=node))
            elif node in world.off:
                yield Move(f"{node} is off and does not answer the driver", replace(world, driver=Driver()))
            elif world.budget.messages:
                spent = replace(world.budget, messages=world.budget.messages - 1)
                late = replace(world, driver=Driver(), call=world.call + 1, budget=spent)
                yield Move(f"the driver waits for {driver.asked} no longer; the message is still on its way", late, fault=True)
        elif driver.follows:
            yield from self._follow(world, driver.op)
        else:
            yield from self._step(world)

    def _step(self, world: World) -> Iterator[Move]:
        for op in range(len(OPERATIONS)):
            operation = world.store.operation(op)
            if operation is None or operation.done:
                continue
            if op not in MIGRATIONS:
                yield from self._hosts.step(world, op, operation.phase)
                continue
            committed = world.store.owner.state is OwnerState.COMMITTED
            match operation.phase:
                case phase if phase == RESERVED and not operation.cancel_requested:
                    yield _asks(world, op, Ask.PREPARE)
                case phase if phase == DESTINATION_READY:
                    # A cancel is seen in the next phase; but entering it is refused to one that was cancelled.
                    name = "abort" if operation.cancel_requested and not self._wants(world.store, ("copying", op, "")) else "copying"
                    yield Move(f"the driver is to enter `{name}`", decides(world, op, (name, op, phase if name == "abort" else "")))
                case phase if phase == COPYING and committed:
                    yield Move("the driver sees the commit", decides(world, op, ("committed", op, "")))
                case phase if phase == COPYING and not operation.cancel_requested:
                    yield _asks(world, op, Ask.START)
                case phase if phase in (RESERVED, COPYING):
                    yield Move("the driver sees the cancel", decides(world, op, ("abort", op, phase)))
                case phase if phase == COMMITTED:
                    yield _asks(world, op, Ask.FINISH_INCOMING)
                case phase if phase == ABORTING:
                    yield _asks(world, op, Ask.ABORT_INCOMING)

    def _follow(self, world: World, op: int) -> Iterator[Move]:
        operation = world.store.operation(op)
        if operation is None or operation.phase != COPYING or operation.cancel_requested:
            yield Move("the driver sees that the operation has moved on", replace(world, driver=Driver()))
        elif world.store.owner.state is OwnerState.COMMITTED:
            yield Move("the driver sees the commit", decides(world, op, ("committed", op, "")))
        else:
            handoff = world.handoff(op)
            if world.store.fenced(SOURCE):
                report = self._rules.answers_for_fenced(world.store, SOURCE, Ask.FOLLOW)
                if isinstance(report, HandoffReport) and report.copy is Copy.ABSENT:
                    yield Move("the source is fenced: its copy is gone", decides(world, op, ("abort", op, COPYING)))
            elif world.source is None:
                yield Move("the source was silent for too long", decides(world, op, ("abort", op, COPYING)))
            elif handoff is not None and (handoff.stage is Stage.FAILED or self._shown(world, world.source, handoff) is Copy.ABSENT):
                yield Move("the source reports that it failed", decides(world, op, ("abort", op, COPYING)))
            if world.budget.messages:
                spent = replace(world.budget, messages=world.budget.messages - 1)
                yield Move("the copy takes too long", replace(decides(world, op, ("abort", op, COPYING)), budget=spent), fault=True)

    def _gateway_answers(self, world: World, message: Message) -> Iterator[Move]:
        """`engine.fenced_nodes`, asked for real; what the flow does with the answer."""
        answer = self._rules.answers_for_fenced(world.store, message.node, message.ask)
        says = f"the gateway answers {message.ask} for {message.node}, which is fenced"
        match answer:
            case HostlerError() if message.op not in MIGRATIONS:
                yield Move(f"{says}: refused", self._hosts.refused(world, message))
            case FailedPrecondition() if message.ask is Ask.FINISH_INCOMING:
                yield Move(f"{says}: refused", _asks(world, message.op, Ask.INSPECT_INCOMING).world)
            case HostlerError():
                yield Move(f"{says}: refused", self._refused(world, message))
            case VMStatus():
                yield Move(f"{says}: off", self._hosts.stopped(world, message))
            case HandoffReport() if message.ask is Ask.ABORT_INCOMING:
                yield Move(f"{says}: nothing is there", _asks(world, message.op, Ask.ABORT_OUTGOING).world)
            case HandoffReport() if message.ask is Ask.INSPECT_INCOMING:
                yield Move(f"{says}: {answer.copy.value}", _answered(world, message, answer.copy is Copy.ABSENT, Ask.LOST_OUTGOING))
            case HandoffReport():
                yield Move(f"{says}: {answer.stage.value}, {answer.copy.value}", self._ended(world, message, answer.stage, answer.copy))

    # ---- messages

    def _messages(self, world: World) -> Iterator[Move]:
        for message in world.net:
            rest = replace(world, net=world.net - {message})
            match message.ask:
                case Ask.PREPARE if world.destination and world.task is None and world.starting_at(DESTINATION) is None:
                    yield self._prepare(rest, message)
                case Ask.FINISH_INCOMING | Ask.NOTE_COMMITTED if (
                    world.destination and world.task is None and world.starting_at(DESTINATION) is None
                ):
                    yield self._resume_if_committed(rest, message)
                case Ask.ABORT_INCOMING if world.destination and world.task is None and world.starting_at(DESTINATION) is None:
                    yield self._abort_incoming(rest, message)
                case Ask.INSPECT_INCOMING if world.destination:
                    there = world.arriving is not None and world.arriving.op == message.op
                    answered = _answered(rest, message, not there, Ask.LOST_OUTGOING)
                    yield Move(f"the destination answers {message.ask}: {'there is a copy' if there else 'absent'}", answered)
                case Ask.START if world.source is not None:
                    yield self._start(rest, message, world.source)
                case Ask.FINISH_OUTGOING | Ask.LOST_OUTGOING | Ask.ABORT_OUTGOING if world.source is not None:
                    yield from self._await_end(rest, message, world.source)
                case Ask.COMMIT:
                    decision = ("commit", message.op, str(message.revision))
                    if self._wants(world.store, decision):
                        write = replace(message, ask=Ask.COMMIT_WRITE, decision=decision, seen=world.store)
                        yield Move("a replica decides to commit", replace(rest, net=rest.net | {write}))
                    else:
                        yield Move("a replica finds nothing to commit", self._commit_answered(rest, message))
                case Ask.COMMIT_WRITE | Ask.STEP_WRITE:
                    after = self._write(world.store, message.decision, message.seen)
                    done = "is refused by the store" if after is None else "is written"
                    landed = rest if after is None else replace(rest, store=after)
                    if message.ask is Ask.COMMIT_WRITE:
                        landed = self._commit_answered(landed, message)
                    yield Move(f"{message.ask}, decided earlier, {done}", landed)
                case _:
                    continue
            if message.ask is Ask.COMMIT and world.budget.messages:
                yield from self._commit_doubled(world, message)

    def _commit_doubled(self, world: World, message: Message) -> Iterator[Move]:
        """The first try stays on its way; the source has repeated it, and was answered."""
        for move in self._messages(replace(world, net=frozenset({message}), budget=replace(world.budget, messages=0))):
            doubled = replace(move.world, net=move.world.net | world.net, budget=world.budget)
            yield Move(f"{move.says} (sent twice)", spent(doubled, "messages"), fault=True)

    def _prepare(self, world: World, message: Message) -> Move:
        stage = world.stage_in(message.op)
        says = f"the destination handles {message.ask} of migration {message.op + 1}"
        stale = world.destination_epoch > message.epoch
        leftover = world.arriving is not None and stage is None
        running = world.arriving is not None and world.arriving.power is Power.RUNNING
        laying = self._rules.laying_refuses and dict(world.laying).get(DESTINATION) is not None
        if laying or stage not in (None, Stage.PREPARED) or stale or (leftover and (running or world.taken)):
            return Move(f"{says}: refused", self._refused(world, message))
        if stage is None:
            world = replace(
                world,
                arriving=None,
                destination_epoch=message.epoch,
                taken=False,
                incoming=(*world.incoming, (message.op, Stage.PREPARED)),
            )
        world = replace(world, listening=world.listening | {message.op})
        return Move(f"{says}: it is ready", gives(world, message, ("ready", message.op, "")))

    def _resume_if_committed(self, world: World, message: Message) -> Move:
        says = f"the destination handles {message.ask} of migration {message.op + 1}"
        match world.stage_in(message.op):
            case None:
                return Move(f"{says}: unknown", replace(world, driver=Driver()) if waits(world, message) else world)
            case Stage.PREPARED:
                owner = world.store.owner
                if self._rules.may_resume_arrival(owner, DESTINATION, OPERATIONS[message.op]):
                    return Move(f"{says}: it may resume", replace(world, task=Task(Doing.RESUME, message, owner.epoch)))
                return Move(f"{says}: not committed to it", replace(world, driver=Driver()) if waits(world, message) else world)
            case stage:
                return Move(
                    f"{says}: {stage.value.lower()} already", _answered(world, message, stage is Stage.FINISHED, Ask.FINISH_OUTGOING)
                )

    def _abort_incoming(self, world: World, message: Message) -> Move:
        says = f"the destination handles {message.ask} of migration {message.op + 1}"
        match world.stage_in(message.op):
            case Stage.PREPARED:
                if self._rules.may_resume_arrival(world.store.owner, DESTINATION, OPERATIONS[message.op]):
                    return Move(f"{says}: refused, it was committed", replace(world, driver=Driver()) if waits(world, message) else world)
                return Move(f"{says}: it is to destroy its copy", replace(world, task=Task(Doing.CLOSE, message)))
            case stage:
                if stage is None and self._rules.abort_remembered:
                    world = replace(world, incoming=(*world.incoming, (message.op, Stage.ABORTED)))
                return Move(f"{says}: nothing to abort", _answered(world, message, True, Ask.ABORT_OUTGOING))

    def _start(self, world: World, message: Message, source: Memory) -> Move:
        says = f"the source handles {message.ask} of migration {message.op + 1}"
        if world.handoff(message.op) is None:
            runs = world.process is not None and world.process.power is Power.RUNNING
            if world.source_epoch != message.epoch or not runs:
                return Move(f"{says}: refused", self._refused(world, message))
            handoff = Handoff(message.op, message.epoch, message.revision, Stage.PREPARED)
            memory = replace(source, drives=(*source.drives, Drive(message.op)))
            world = replace(world, handoffs=(*world.handoffs, handoff), source=memory)
        if waits(world, message):
            world = replace(world, driver=Driver(message.op, follows=True))
        return Move(f"{says}: it has begun", world)

    def _await_end(self, world: World, message: Message, source: Memory) -> Iterator[Move]:
        handoff = world.handoff(message.op)
        says = f"the source answers {message.ask} of migration {message.op + 1}"
        if handoff is None:
            if message.ask is not Ask.ABORT_OUTGOING:
                yield Move(f"{says}: unknown", replace(world, driver=Driver()) if waits(world, message) else world)
                return
            copy = Copy.ABSENT if world.process is None else Copy.RUNNING if world.process.power is Power.RUNNING else Copy.PAUSED
            yield Move(f"{says}: it knows of none, {copy.value}", self._ended(world, message, Stage.ABORTED, copy))
        elif source.drive(message.op) is None:
            copies = [self._shown(world, source, handoff)]
            if world.budget.libvirt and copies[0] is not Copy.SWITCHED:
                copies.append(Copy.UNKNOWN)
            for copy in copies:
                answered = self._ended(world, message, handoff.stage, copy)
                if copy is Copy.UNKNOWN:
                    answered = replace(answered, budget=replace(world.budget, libvirt=world.budget.libvirt - 1))
                yield Move(f"{says}: {handoff.stage.value}, {copy.value}", answered, fault=copy is Copy.UNKNOWN)

    def _ended(self, world: World, message: Message, stage: Stage, copy: Copy) -> World:
        wanted = Stage.ABORTED if message.ask is Ask.ABORT_OUTGOING else Stage.FINISHED
        doubt = message.ask is Ask.ABORT_OUTGOING and self._rules.doubt_asks_again and copy in IN_DOUBT
        if stage is not wanted or doubt:
            return replace(world, driver=Driver()) if waits(world, message) else world
        name = {Ask.ABORT_OUTGOING: "finish abort", Ask.FINISH_OUTGOING: "finish", Ask.LOST_OUTGOING: "lost"}[message.ask]
        return gives(world, message, (name, message.op, copy.value if name == "finish abort" else ""))

    def _refused(self, world: World, message: Message) -> World:
        """`turn_back`."""
        if not waits(world, message):
            return world
        operation = world.store.operation(message.op)
        if operation is None or operation.phase in (COMMITTED, ABORTING):
            return replace(world, driver=Driver())
        return decides(world, message.op, ("abort", message.op, operation.phase))

    def _commit_answered(self, world: World, message: Message) -> World:
        """The source learns who won, if it still waits; of its own success it tells the peer."""
        drive = world.source.drive(message.op) if world.source is not None else None
        if drive is None or drive.at is not At.COMMITTING:
            return world
        owner = world.store.read_owner()
        world = _driven(world, replace(drive, at=At.TOP, owner=owner))
        if owner.owner.state is OwnerState.COMMITTED and owner.owner.operation_id == OPERATIONS[message.op]:
            world = replace(world, net=world.net | {Message(Ask.NOTE_COMMITTED, message.op)})
        return world

    # ---- the source's agent: engine.outgoing and engine.observer

    def _source(self, world: World) -> Iterator[Move]:
        source = world.source
        if source is None:
            if SOURCE not in world.off:
                yield Move("the source's agent is started again", _restarted(world))
            return
        if source.events:
            yield Move(f"the source's agent hears {source.events[0]}", replace(world, source=_heard(source)))
        for drive in source.drives:
            handoff = world.handoff(drive.op)
            if handoff is None:
                raise RuntimeError("a drive without a handoff")
            yield from self._drive(world, source, drive, handoff)

    def _drive(self, world: World, source: Memory, drive: Drive, handoff: Handoff) -> Iterator[Move]:
        who = f"source, migration {drive.op + 1}:"
        read = world.store.read_owner()
        if drive.owner != read and drive.at is not At.ENDING:
            yield Move(
                f"{who} reads the owner record, {_said(read.owner.state, read.owner.epoch)}", _driven(world, replace(drive, owner=read))
            )
        arriving = world.arriving
        there = world.destination and arriving is not None and arriving.op == drive.op and arriving.power is not Power.INCOMING
        if there and not drive.arrived and drive.copying is not Copying.NOT_BEGUN:
            yield Move(f"{who} hears that the copy has arrived", _driven(world, replace(drive, arrived=True)))
        match drive.at:
            case At.TOP if source.switched and source.ending is Ending.UNTOLD:
                yield from self._act(world, source, replace(drive, copy=Copy.SWITCHED), handoff)
            case At.TOP if drive.owner is not None:
                copy = _standing(world)
                if copy is None:
                    yield Move(
                        f"{who} finds no domain", _driven(world, replace(drive, at=At.GONE, told=source.ending, looked=drive.copying))
                    )
                else:
                    yield Move(f"{who} finds {copy.value}", _driven(world, replace(drive, at=At.LOOKED, copy=copy, looked=drive.copying)))
                if world.budget.libvirt:
                    blind = _driven(world, replace(drive, at=At.LOOKED, copy=Copy.UNKNOWN, looked=drive.copying))
                    yield Move(f"{who} gets no answer from libvirt", spent(blind, "libvirt"), fault=True)
            case At.GONE | At.LOOKED if self._rules.looks_whole and drive.looked is not drive.copying:
                anew = replace(drive, at=At.TOP, copy=Copy.UNKNOWN, told=Ending.UNTOLD, looked=Copying.NOT_BEGUN)
                yield Move(f"{who} looks again, the call has ended meanwhile", _driven(world, anew))
            case At.GONE:
                written = world.record if drive.told is Ending.UNTOLD and handoff.mark else Ending.UNTOLD
                copy = self._rules.gone_copy(handoff.record, drive.told, written, drive.copying)
                yield from self._act(world, source, replace(drive, copy=copy), handoff)
            case At.LOOKED:
                yield from self._act(world, source, drive, handoff)
            case At.ENDING:
                yield Move(f"{who} has finished", _ended(world, drive, Stage.FINISHED))

    def _act(self, world: World, source: Memory, drive: Drive, handoff: Handoff) -> Iterator[Move]:
        """The decision, and its act up to the next await."""
        process = world.process
        frozen = process is not None and process.frozen
        over = process is not None and process.power is Power.SWITCHED and world.job is None
        settled = self._rules.lockless and drive.copy is Copy.SWITCHED and drive.copying is Copying.FAILED and over
        evidence = Evidence(drive.owner, drive.copy, frozen, drive.copying, drive.arrived, drive.locks, self._rules.lockless, settled)
        act = self._rules.next_act(handoff.record, evidence)
        top = replace(drive, at=At.TOP, copy=Copy.UNKNOWN, told=Ending.UNTOLD, looked=Copying.NOT_BEGUN)
        idle = _driven(world, top)
        says = f"source, migration {drive.op + 1}: {act.value} ({drive.copy.value}{', frozen' if frozen else ''})"
        match act:
            case Act.WAIT:
                after = idle
            case Act.BEGIN_COPY:
                if world.budget.libvirt:
                    failed = _driven(world, replace(top, copying=Copying.FAILED))
                    yield Move(f"{says}: the tunnel cannot be opened", spent(failed, "libvirt"), fault=True)
                begun = keeps(_driven(world, replace(top, copying=Copying.RUNNING)), replace(handoff, stage=Stage.COPYING, mark="0"))
                after = (
                    replace(begun, job=Job(drive.op, Phase.ASKED))
                    if world.job is None
                    else _driven(begun, replace(top, copying=Copying.FAILED))
                )
            case Act.FREEZE:
                after = _driven(world, replace(top, locks=None))
                after = replace(after, process=None if process is None else replace(process, frozen=True))
            case Act.INSPECT:
                after = _driven(world, replace(top, locks=_locks(world)))
                says += f", locks {_locks(world).value}"
            case Act.COMMIT:
                sent = Message(Ask.COMMIT, drive.op, 0, handoff.epoch, handoff.revision)
                after = _driven(world, replace(top, at=At.COMMITTING))
                after = replace(after, net=after.net | {sent})
            case Act.KILL if world.cold_at(SOURCE) is not None:
                after = self._hosts.killed(idle, SOURCE)
            case Act.KILL:
                after = idle if process is None else source_ends(idle, Ending.OTHERWISE, died=False)
            case Act.FINISH:
                after = replace(_driven(world, replace(top, at=At.ENDING)), source_epoch=0)
            case Act.STOP_COPY:
                after = idle if world.job is None else replace(idle, job=replace(world.job, stopped=True))
            case Act.THAW:
                after = replace(idle, process=None if process is None else replace(process, frozen=False))
            case Act.RESUME if world.cold_at(SOURCE) is not None:
                after = self._hosts.resumed(idle, SOURCE)
            case Act.RESUME if self._rules.locks_bar and world.locked_against(SOURCE):
                after = idle
            case Act.RESUME:
                after = idle if process is None or world.job is not None else _resumed(idle)
            case Act.ABORTED:
                after = _ended(world, drive, Stage.ABORTED)
            case Act.FAIL:
                after = keeps(idle, replace(handoff, stage=Stage.FAILED))
        yield Move(says, after)

    def _shown(self, world: World, source: Memory, handoff: Handoff) -> Copy:
        """`report`: what the source says of its copy."""
        if source.switched and source.ending is Ending.UNTOLD:
            return Copy.SWITCHED
        copy = _standing(world)
        if copy is not None:
            return copy
        written = world.record if source.ending is Ending.UNTOLD and handoff.mark else Ending.UNTOLD
        drive = source.drive(handoff.op)
        return self._rules.gone_copy(handoff.record, source.ending, written, Copying.NOT_BEGUN if drive is None else drive.copying)

    # ---- the destination's agent: engine.incoming

    def _destination(self, world: World) -> Iterator[Move]:
        if not world.destination:
            if DESTINATION not in world.off:
                yield Move("the destination's agent is started again", replace(world, destination=True))
            return
        task = world.task
        if task is None:
            return
        op, idle = task.message.op, replace(world, task=None)
        mine = world.arriving if world.arriving is not None and world.arriving.op == op else None
        match task.doing:
            case Doing.RESUME:
                if mine is None or mine.power is Power.INCOMING:
                    lost = idle
                    if waits(world, task.message):
                        lost = _asks(replace(idle, driver=Driver()), op, Ask.INSPECT_INCOMING).world
                    yield Move("the destination has nothing to resume", lost)
                elif self._rules.locks_bar and world.locked_against(DESTINATION):
                    yield Move("the destination cannot resume its copy: another holds the disk's lock", _let_wait(idle, task.message))
                else:
                    after = replace(world, task=replace(task, doing=Doing.KEEP_RESUMED), arriving=replace(mine, power=Power.RUNNING))
                    yield Move("the destination resumes its copy", after)
            case Doing.KEEP_RESUMED:
                kept = replace(_staged(idle, op, Stage.FINISHED), destination_epoch=task.epoch, taken=True)
                yield Move("the destination writes down that it runs", _answered(kept, task.message, True, Ask.FINISH_OUTGOING))
            case Doing.CLOSE:
                cut = cuts(replace(world, task=replace(task, doing=Doing.DESTROY), listening=world.listening - {op}), op)
                yield Move("the destination closes the tunnel", cut)
            case Doing.DESTROY:
                after = replace(world, task=replace(task, doing=Doing.KEEP_ABORTED))
                yield Move("the destination destroys its copy", after if mine is None else replace(after, arriving=None))
            case Doing.KEEP_ABORTED:
                kept = replace(_staged(idle, op, Stage.ABORTED), destination_epoch=0)
                yield Move("the destination writes down the abort", _answered(kept, task.message, True, Ask.ABORT_OUTGOING))

    # ---- libvirt and QEMU

    def _hypervisor(self, world: World) -> Iterator[Move]:
        job = world.job
        if job is None:
            return
        alive = job.tunnel and world.arriving is not None and world.arriving.op == job.op
        process = world.process
        runs = process is not None and process.executes
        match job.phase:
            case Phase.ASKED:
                reaches = job.tunnel and world.arriving is None and job.op in world.listening
                if reaches and runs and not job.stopped:
                    begun = replace(world, arriving=Arriving(job.op), job=replace(job, phase=Phase.COPYING))
                    yield Move("libvirt: the copying begins", begun)
                else:
                    yield Move("libvirt: the copying cannot begin", _called(replace(world, job=None), Copying.FAILED))
            case Phase.COPYING:
                if alive and runs and not job.stopped and process is not None:
                    after = replace(world, process=replace(process, power=Power.SWITCHED), job=replace(job, phase=Phase.SWITCHED))
                    yield Move("QEMU: the source switches over", tells(after, Event.SWITCHED))
                else:
                    yield Move(
                        "libvirt: the copying fails, the source runs on",
                        _called(arriving_lost(replace(world, job=None), job.op), Copying.FAILED),
                    )
            case Phase.SWITCHED:
                if alive and process is not None and world.arriving is not None:
                    power = Power.PAUSED if self._rules.arrives_paused else Power.RUNNING
                    after = replace(world, arriving=replace(world.arriving, power=power), job=replace(job, phase=Phase.ARRIVED))
                    yield Move("QEMU: the copy has arrived", after)
                else:
                    yield Move(
                        "libvirt: the last step fails", replace(arriving_lost(world, job.op), job=replace(job, phase=Phase.GOES_BACK))
                    )
            case Phase.ARRIVED:
                if job.tunnel:
                    yield Move(
                        "libvirt: the source's side hears of the arrival", replace(world, job=replace(job, phase=Phase.ACKNOWLEDGED))
                    )
                else:
                    yield Move("libvirt: the answer is lost, taken for a failure", replace(world, job=replace(job, phase=Phase.GOES_BACK)))
            case Phase.ACKNOWLEDGED:
                record = Ending.MIGRATED if process is not None else world.record
                yield Move("libvirt writes down that it migrated", replace(world, record=record, job=replace(job, phase=Phase.WRITTEN)))
            case Phase.WRITTEN:
                ended = replace(world, job=None)
                if process is not None:
                    ended = tells(replace(ended, process=None), Event.MIGRATED)
                yield Move("libvirt ends the source, the call returns", _called(ended, Copying.RETURNED))
                if world.budget.libvirt:
                    yield Move("libvirt ends the source, the call fails", spent(_called(ended, Copying.FAILED), "libvirt"), fault=True)
            case Phase.GOES_BACK if process is None or not process.frozen:
                after = replace(world, job=None)
                after = after if process is None else _resumed(after)
                yield Move("libvirt lets the source run on, the call fails", _called(after, Copying.FAILED))
            case Phase.GOES_BACK:
                pass
        if world.budget.libvirt:
            yield from _libvirt_faults(world, job)


def _said(state: OwnerState, epoch: int) -> str:
    return f"{state.value} under epoch {epoch}"


def _libvirt_faults(world: World, job: Job) -> Iterator[Move]:
    if job.phase is Phase.COPYING:
        after = _called(arriving_lost(replace(world, job=None), job.op), Copying.FAILED)
        yield Move("libvirt: the copying breaks", spent(after, "libvirt"), fault=True)
    if job.phase in (Phase.SWITCHED, Phase.ARRIVED):
        lost = arriving_lost(world, job.op) if job.phase is Phase.SWITCHED else world
        after = spent(replace(lost, job=replace(job, phase=Phase.GOES_BACK)), "libvirt")
        yield Move("libvirt: its last answer is lost, taken for a failure", after, fault=True)
    if job.phase is Phase.GOES_BACK and world.process is not None and not world.process.frozen:
        after = _called(replace(world, job=None), Copying.FAILED)
        yield Move("libvirt: the call fails and the source stays switched over", spent(after, "libvirt"), fault=True)
    early = _called(world, Copying.FAILED)
    if early != world:
        yield Move("libvirt: the call fails while its work goes on", spent(early, "libvirt"), fault=True)


def _faults(world: World) -> Iterator[Move]:
    budget = world.budget
    if budget.agents and world.source is not None:
        dead = _agent_lost(replace(world, source=None), SOURCE)
        dead = dead if world.job is None else replace(dead, job=replace(world.job, tunnel=False))
        yield Move("the source's agent is killed", spent(dead, "agents"), fault=True)
    if budget.agents and world.destination:
        dead = _agent_lost(replace(world, destination=False, task=None, listening=frozenset()), DESTINATION)
        dead = dead if world.job is None else replace(dead, job=replace(world.job, tunnel=False))
        if world.task is not None and waits(world, world.task.message):
            dead = replace(dead, driver=Driver())
        yield Move("the destination's agent is killed", spent(dead, "agents"), fault=True)
    if budget.schedulers and world.driver is not None:
        late = world.net
        if world.driver.seen is not None and world.driver.decision is not None:
            late = late | {Message(Ask.STEP_WRITE, world.driver.op, decision=world.driver.decision, seen=world.driver.seen)}
        dead = replace(world, driver=None, net=late)
        yield Move("the leading scheduler is killed; what it has sent is on its way", spent(dead, "schedulers"), fault=True)
    for op, stage in world.incoming:
        untrue = Message(Ask.NOTE_COMMITTED, op)
        if budget.messages and stage is Stage.PREPARED and untrue not in world.net:
            said = replace(world, net=world.net | {untrue})
            yield Move(f"the destination is told that migration {op + 1} was committed", spent(said, "messages"), fault=True)
    if budget.deaths and world.process is not None:
        dead = source_ends(world, Ending.OTHERWISE, died=True)
        yield Move("the source's process dies by itself", spent(dead, "deaths"), fault=True)
    if budget.deaths and world.arriving is not None:
        dead = replace(world, arriving=None, died=world.died or world.arriving.power is Power.RUNNING)
        yield Move("the destination's process dies by itself", spent(dead, "deaths"), fault=True)


def _aged(world: World) -> World:
    """A copy is stale once the source has executed after it was taken."""
    arriving, process = world.arriving, world.process
    if arriving is None or arriving.stale or arriving.power is Power.INCOMING:
        return world
    if not (process is not None and process.executes) and not any(cold.runs for cold in world.colds):
        return world
    return replace(world, arriving=replace(arriving, stale=True))


def _asks(world: World, op: int, ask: Ask) -> Move:
    vm = world.store.vm
    message = Message(ask, op, world.call, vm.record.owner.epoch, vm.revision if ask is Ask.START else 0)
    node = ASKED_OF[ask]
    reaches = node not in world.off and not world.store.fenced(node)
    asking = replace(world, driver=Driver(op, asked=ask), net=world.net | {message} if reaches else world.net)
    return Move(f"the driver sends {ask} of migration {op + 1}", asking)


def _agent_lost(world: World, node: str) -> World:
    """What it did for a VM's start, or for a fence, is lost with it; the driver that waits for it asks again."""
    starting = world.starting_at(node)
    lost = replace(world, laying=tuple(other for other in world.laying if other[0] != node))
    if starting is None:
        return lost
    lost = replace(lost, starting=tuple(other for other in world.starting if other is not starting))
    return _let_wait(lost, starting.message)


def _let_wait(world: World, message: Message) -> World:
    """The node could not: the driver, if it waits, asks again later."""
    return replace(world, driver=Driver()) if waits(world, message) else world


def _answered(world: World, message: Message, good: bool, follow_up: Ask) -> World:
    """The driver, if it waits, asks the other end; or asks anew if the answer was not good."""
    if not waits(world, message):
        return world
    return _asks(world, message.op, follow_up).world if good else replace(world, driver=Driver())


def _restarted(world: World) -> World:
    """`run`: what the journal holds is taken up; a handoff without a definition has been finished."""
    drives: list[Drive] = []
    handoffs: list[Handoff] = []
    for handoff in world.handoffs:
        if handoff.stage in (Stage.FINISHED, Stage.ABORTED):
            handoffs.append(handoff)
        elif world.source_epoch:
            drives.append(Drive(handoff.op, Copying.NOT_BEGUN if handoff.stage is Stage.PREPARED else Copying.FAILED))
            handoffs.append(handoff)
        else:
            handoffs.append(replace(handoff, stage=Stage.FINISHED))
    return replace(world, source=Memory(tuple(drives)), handoffs=tuple(handoffs))


def _heard(source: Memory) -> Memory:
    """`Observer._take`."""
    event, rest = source.events[0], source.events[1:]
    match event:
        case Event.SWITCHED:
            return replace(source, events=rest, switched=True)
        case Event.RESUMED:
            return replace(source, events=rest, switched=False)
        case Event.MIGRATED:
            return replace(source, events=rest, ending=Ending.MIGRATED)
        case Event.ENDED:
            return replace(source, events=rest, ending=Ending.OTHERWISE)


def _standing(world: World) -> Copy | None:
    cold = world.cold_at(SOURCE)
    if cold is not None:
        return Copy.RUNNING if cold.runs else Copy.PAUSED
    process = world.process
    if process is None:
        return None
    return {Power.RUNNING: Copy.RUNNING, Power.SWITCHED: Copy.SWITCHED}.get(process.power, Copy.PAUSED)


def _locks(world: World) -> Locks:
    """Byte locks of both copies, as any host sees them."""
    held = (world.process is not None and world.process.can_write) or (world.arriving is not None and world.arriving.power is Power.RUNNING)
    held = held or bool(world.colds)
    return Locks.HELD if held else Locks.FREE


def _driven(world: World, drive: Drive) -> World:
    if world.source is None:
        raise RuntimeError("an agent that is down drives nothing")
    drives = tuple(drive if other.op == drive.op else other for other in world.source.drives)
    return replace(world, source=replace(world.source, drives=drives))


def _ended(world: World, drive: Drive, stage: Stage) -> World:
    """The run is over: its tasks are cancelled, the tunnel is closed."""
    handoff = world.handoff(drive.op)
    if world.source is None or handoff is None:
        raise RuntimeError("an agent that is down ends nothing")
    drives = tuple(other for other in world.source.drives if other.op != drive.op)
    return cuts(keeps(replace(world, source=replace(world.source, drives=drives)), replace(handoff, stage=stage)), drive.op)


def _staged(world: World, op: int, stage: Stage) -> World:
    return replace(world, incoming=tuple((other, stage if other == op else was) for other, was in world.incoming))


def _called(world: World, copying: Copying) -> World:
    """The migration's call ends, for an agent that still waits for it."""
    source = world.source
    if source is None:
        return world
    drives = tuple(replace(drive, copying=copying) if drive.copying is Copying.RUNNING else drive for drive in source.drives)
    return replace(world, source=replace(source, drives=drives))


def _resumed(world: World) -> World:
    if world.process is None or world.process.power is Power.RUNNING:
        return world
    return tells(replace(world, process=replace(world.process, power=Power.RUNNING)), Event.RESUMED)
