"""What may happen next. A move is everything from one await of an engine to its next, so others may move wherever the engine lets them.

Mirrored by hand, line by line: here scheduler.engine.flows.migration and cold_migration; in `sources` nodeagent.engine.outgoing (`_step` and its
acts) and observer, in `destinations` incoming (`resume_if_committed`, `abort`), in `hosts` the life of a VM, power and fences, in `faults` what
goes wrong. The decisions themselves are the product's own (`Rules`). A fault is a move that costs budget. Locks are believed when asked
and stop nobody: the protocol alone has to keep the second writer away.
A destination that learns of its commit by its own question does what a NoteCommitted that arrives at once makes it do, so that is no move of its own.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from hostler.errors import FailedPrecondition, HostlerError
from hostler.model.copy import GONE, IN_DOUBT, Copy, HandoffReport, Stage
from hostler.model.node import VMStatus
from hostler.model.owner import OwnerState
from scheduler.core.steps import ABORTING, COMMITTED, COPYING, DEFINED, DESTINATION_READY, RESERVED
from tests.explore.changes import (
    IDLE,
    Move,
    aged,
    asks,
    asks_again,
    comes_late,
    decides,
    dropped,
    given_up,
    gives,
    placed,
    proved,
    spent,
    waits,
)
from tests.explore.destinations import DestinationMoves
from tests.explore.faults import faults, links, zombie_moves
from tests.explore.hosts import HostMoves
from tests.explore.hypervisor import hypervisor
from tests.explore.rules import Rules
from tests.explore.sources import SourceMoves, standing
from tests.explore.world import MIGRATIONS, NODES, OPERATIONS, Ask, Decision, Message, Proofs, Store, World


class Moves:
    """The moves under one set of rules. Transactions are remembered by the store that they were decided on."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._written: dict[tuple[Store, Store, Decision, Proofs], Store | None] = {}
        self._wanted: dict[tuple[Store, Decision, Proofs], bool] = {}
        self._hosts = HostMoves(rules, self._write, self._wants)
        self._sources = SourceMoves(rules)
        self._destinations = DestinationMoves(rules)

    def __call__(self, world: World) -> Iterator[Move]:
        for move in self._all(world):
            after = aged(move.world)
            yield move if after is move.world else Move(move.says, after, move.fault)

    def _all(self, world: World) -> Iterator[Move]:
        yield from self._people(world)
        yield from self._driver(world)
        yield from self._messages(world)
        yield from self._commit_known(world)
        for node, host in enumerate(world.hosts):
            yield from self._sources(world, node, host)
            yield from self._destinations(world, node, host)
            if host.job is not None:
                yield from hypervisor(
                    world, node, host, host.job, arrives_paused=self._rules.arrives_paused, locks_bar=self._rules.locks_bar
                )
            if host.zombie is not None:
                yield from zombie_moves(world, node, host, host.zombie, self._sources, self._destinations, self._hosts)
        yield from self._hosts(world)
        yield from faults(world)
        yield from links(world)

    # ---- the store

    def _wants(self, store: Store, decision: Decision, proofs: Proofs = ()) -> bool:
        key = (store, decision, proofs)
        if key not in self._wanted:
            try:
                self._wanted[key] = self._rules.decide(store.state, decision, proofs) is not None
            except HostlerError:
                self._wanted[key] = False
        return self._wanted[key]

    def _write(self, store: Store, decision: Decision, seen: Store | None = None, proofs: Proofs = ()) -> Store | None:
        """The store after what was decided on `seen` (by default: now); None: refused by a guard, or nothing was wanted."""
        seen = store if seen is None else seen
        key = (store, seen, decision, proofs)
        if key not in self._written:
            transaction = self._rules.decide(seen.state, decision, proofs) if self._wants(seen, decision, proofs) else None
            self._written[key] = None if transaction is None else store.write(transaction)
        return self._written[key]

    # ---- people

    def _people(self, world: World) -> Iterator[Move]:
        budget, state = world.budget, world.store.owner.state
        if not (budget.moves or budget.cancels):
            return
        begun = sum(world.store.operation(op) is not None for op in MIGRATIONS)
        if budget.moves and state is (OwnerState.STOPPED if budget.off else OwnerState.RUNNING):
            after = self._write(world.store, ("migrate", begun, NODES[budget.moves[0]]))
            if after is not None:
                spent = replace(world, store=after, budget=replace(budget, moves=budget.moves[1:]))
                yield Move(f"migration {begun + 1} is accepted, to n{budget.moves[0] + 1}", spent)
        for op in range(begun):
            if budget.cancels and (after := self._write(world.store, ("cancel", op, ""))) is not None:
                cancelled = replace(world, store=after, budget=replace(budget, cancels=budget.cancels - 1))
                yield Move(f"somebody cancels migration {op + 1}", cancelled, fault=True)

    # ---- the scheduler's driver: flows.migration

    def _driver(self, world: World) -> Iterator[Move]:
        driver = world.driver
        if driver is None:
            yield Move("a scheduler takes the lead", given_up(world))
        elif driver.seen is not None and driver.decision is not None:
            after = self._write(world.store, driver.decision, driver.seen, driver.proofs)
            if after is not None:
                yield Move(f"the driver's transaction `{driver.decision[0]}` is written", replace(world, store=after, driver=IDLE))
            else:
                yield Move(f"the driver's transaction `{driver.decision[0]}` is refused", decides(world, driver.op, driver.decision))
        elif driver.decision is not None:
            if self._wants(world.store, driver.decision, driver.proofs):
                yield Move(f"the driver decides on `{driver.decision[0]}`", replace(world, driver=replace(driver, seen=world.store)))
            else:
                yield Move(f"the driver sees that `{driver.decision[0]}` is out of date", replace(world, driver=IDLE))
        elif driver.asked is not None:
            yield from self._waiting(world, driver.asked, driver.op, driver.node)
        elif driver.follows:
            yield from self._follow(world, driver.op)
        else:
            yield from self._step(world)

    def _waiting(self, world: World, asked: Ask, op: int, node: int) -> Iterator[Move]:
        if world.store.fenced(node) or (self._rules.silence_is_proof and not (world.hosts[node].up and world.heard(node))):
            yield from self._gateway_answers(proved(world, node), Message(asked, op, node))
        elif world.hosts[node].dark:
            yield Move(f"{NODES[node]} is off and does not answer the driver", replace(world, driver=IDLE))
        elif not world.heard(node):
            yield Move(f"{NODES[node]} is cut off and does not answer the driver", given_up(world))
        elif world.budget.messages:
            late = spent(given_up(world), "messages")
            yield Move(f"the driver waits for {asked} no longer; the message is still on its way", late, fault=True)

    def _step(self, world: World) -> Iterator[Move]:
        for op in range(len(OPERATIONS)):
            operation = world.store.operation(op)
            if operation is None or operation.done:
                continue
            if op not in MIGRATIONS or operation.migration is None:
                yield from self._hosts.step(world, op, operation.phase)
                continue
            if operation.migration.cold:
                yield from self._cold_step(world, op, operation.phase, cancelled=operation.cancel_requested)
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

    def _cold_step(self, world: World, op: int, phase: str, *, cancelled: bool) -> Iterator[Move]:
        """`flows.cold_migration`."""
        source, destination = world.store.ends(op)
        if cancelled and phase in (RESERVED, DEFINED):
            yield Move("the driver sees the cancel", decides(world, op, ("abort cold", op, "")))
        elif phase == RESERVED:
            yield _asks(world, op, Ask.DEFINE, destination)
        elif phase == DEFINED:
            yield _asks(world, op, Ask.INSPECT_COLD, source)
        else:
            yield _asks(world, op, Ask.FORGET, source if phase == COMMITTED else destination)

    def _follow(self, world: World, op: int) -> Iterator[Move]:
        operation = world.store.operation(op)
        if operation is None or operation.phase != COPYING or operation.cancel_requested:
            yield Move("the driver sees that the operation has moved on", replace(world, driver=IDLE))
        elif world.store.owner.state is OwnerState.COMMITTED:
            yield Move("the driver sees the commit", decides(world, op, ("committed", op, "")))
        else:
            node, abort = world.store.ends(op)[0], decides(world, op, ("abort", op, COPYING))
            source = world.hosts[node]
            handoff = source.handoff(op)
            if world.store.fenced(node):
                report = self._rules.answers_for_fenced(world.store, node, Ask.FOLLOW)
                if isinstance(report, HandoffReport) and report.copy is Copy.ABSENT:
                    yield Move("the source is fenced: its copy is gone", decides(proved(world, node), op, ("abort", op, COPYING)))
            elif not source.up or not world.heard(node):
                yield Move("the source was silent for too long", abort)
            elif handoff is not None and (handoff.stage is Stage.FAILED or self._sources.shown(source, handoff) is Copy.ABSENT):
                yield Move("the source reports that it failed", abort)
            if world.budget.messages:
                yield Move("the copy takes too long", spent(abort, "messages"), fault=True)

    def _gateway_answers(self, world: World, message: Message) -> Iterator[Move]:
        """`engine.fenced_nodes`, asked for real; what the flow does with the answer."""
        answer = self._rules.answers_for_fenced(world.store, message.node, message.ask)
        says = f"the gateway answers {message.ask} for {NODES[message.node]}, which is fenced"
        match answer:
            case HostlerError() if message.op not in MIGRATIONS:
                yield Move(f"{says}: refused", self._hosts.refused(world, message))
            case HostlerError() if message.ask is Ask.DEFINE:
                yield Move(f"{says}: refused", self._hosts.cold_refused(world, message))
            case FailedPrecondition() if message.ask is Ask.FINISH_INCOMING:
                yield Move(f"{says}: refused", asks(world, message.op, Ask.INSPECT_INCOMING))
            case HostlerError():
                yield Move(f"{says}: refused", self._refused(world, message))
            case VMStatus():
                yield Move(f"{says}: off", self._hosts.stopped(world, message))
            case None:
                yield Move(f"{says}: forgotten", self._hosts.forgotten(world, message))
            case HandoffReport() if message.ask is Ask.INSPECT_COLD:
                seen = replace(message, revision=world.store.vm.revision)
                yield Move(f"{says}: {answer.copy.value}", self._hosts.inspected(world, seen, absent=answer.copy is Copy.ABSENT))
            case HandoffReport() if message.ask is Ask.ABORT_INCOMING:
                yield Move(f"{says}: nothing is there", asks(world, message.op, Ask.ABORT_OUTGOING))
            case HandoffReport() if message.ask is Ask.INSPECT_INCOMING:
                yield Move(f"{says}: {answer.copy.value}", _answered(world, message, answer.copy is Copy.ABSENT, Ask.LOST_OUTGOING))
            case HandoffReport():
                yield Move(f"{says}: {answer.stage.value}, {answer.copy.value}", self._ended(world, message, answer.stage, answer.copy))

    # ---- messages

    def _messages(self, world: World) -> Iterator[Move]:
        for message in world.net:
            ask, node = message.ask, message.node
            if ask in (Ask.COMMIT_WRITE, Ask.STEP_WRITE):
                rest = replace(world, net=world.net - {message})
                after = self._write(world.store, message.decision, message.seen, message.proofs)
                done = "is refused by the store" if after is None else "is written"
                landed = rest if after is None else replace(rest, store=after)
                if ask is Ask.COMMIT_WRITE:
                    landed = self._commit_answered(landed, message)
                yield Move(f"{ask}, decided earlier, {done}", landed)
            elif ask is Ask.COMMIT:
                if world.heard(node):
                    yield self._commit(replace(world, net=world.net - {message}), message)
                    if world.budget.messages:
                        yield from self._commit_doubled(world, message)
            elif world.hosts[node].up and world.heard(node):
                yield from self._command(world, message)
            elif ask is Ask.NOTE_COMMITTED and world.hosts[node].up and world.linked(*world.store.ends(message.op)):
                rest = replace(world, net=world.net - {message})
                yield Move(f"{NODES[node]} hears of a commit, and cannot read the record", rest)

    def _commit_known(self, world: World) -> Iterator[Move]:
        """A replica answers the question that the destination put before the commit."""
        owner = world.store.owner
        for op in MIGRATIONS:
            if (owner.state, owner.operation_id) != (OwnerState.COMMITTED, OPERATIONS[op]):
                continue
            node = world.store.ends(op)[1]
            host, answer = world.hosts[node], Message(Ask.COMMIT_KNOWN, op, node, epoch=owner.epoch)
            if not host.up or not world.heard(node) or host.busy or host.stage_in(op) is not Stage.PREPARED:
                continue
            learns = f"{NODES[node]} learns that migration {op + 1} is committed by its own question"
            yield Move(learns, self._destinations.resumes(world, answer))
            if world.budget.messages and answer not in world.net:
                late = spent(replace(world, net=world.net | {answer}), "messages")
                yield Move(f"the answer to {NODES[node]}, that migration {op + 1} is committed, is late", late, fault=True)

    def _command(self, world: World, message: Message) -> Iterator[Move]:
        """To an agent that is there."""
        node, host = message.node, world.hosts[message.node]

        def rest() -> World:
            return replace(world, net=world.net - {message})

        match message.ask:
            case Ask.PREPARE if not host.busy:
                yield self._prepare(rest(), message)
            case Ask.NOTE_COMMITTED if not host.busy and world.linked(*world.store.ends(message.op)):
                yield self._resume_if_committed(rest(), message)
            case Ask.COMMIT_KNOWN if host.busy or host.stage_in(message.op) is not Stage.PREPARED:
                yield Move(f"{NODES[node]} leaves it to whoever has the turn", rest())
            case Ask.COMMIT_KNOWN:
                yield Move(f"{NODES[node]} learns of the commit at last", self._destinations.resumes(rest(), message))
            case Ask.FINISH_INCOMING if not host.busy:
                yield self._resume_if_committed(rest(), message)
            case Ask.ABORT_INCOMING if not host.busy:
                yield self._abort_incoming(rest(), message)
            case Ask.INSPECT_INCOMING:
                there = host.copy_of(message.op) is not None
                answered = _answered(rest(), message, not there, Ask.LOST_OUTGOING)
                yield Move(f"{NODES[node]} answers {message.ask}: {'there is a copy' if there else 'absent'}", answered)
            case Ask.START:
                yield self._start(rest(), message)
            case Ask.FINISH_OUTGOING | Ask.LOST_OUTGOING | Ask.ABORT_OUTGOING:
                yield from self._await_end(rest(), message)

    def _commit(self, rest: World, message: Message) -> Move:
        decision = ("commit", message.op, str(message.revision))
        if self._wants(rest.store, decision):
            write = replace(message, ask=Ask.COMMIT_WRITE, decision=decision, seen=rest.store)
            return Move("a replica decides to commit", replace(rest, net=rest.net | {write}))
        return Move("a replica finds nothing to commit", self._commit_answered(rest, message))

    def _commit_doubled(self, world: World, message: Message) -> Iterator[Move]:
        """The first try stays on its way; the source has repeated it, and was answered."""
        for move in self._messages(replace(world, net=frozenset({message}), budget=replace(world.budget, messages=0))):
            doubled = replace(move.world, net=move.world.net | world.net, budget=world.budget)
            yield Move(f"{move.says} (sent twice)", spent(doubled, "messages"), fault=True)

    def _commit_answered(self, world: World, message: Message) -> World:
        """The source learns who won, if it still waits and can be reached; of its own success it tells the peer."""
        node = message.node
        host = world.hosts[node]
        drive = host.memory.drive(message.op) if host.up and world.heard(node) else None
        if drive is None or drive.at.value != "COMMITTING":
            return world
        return self._sources.learns(world, node, drive)

    # ---- what a destination answers: engine.incoming

    def _prepare(self, world: World, message: Message) -> Move:
        host = world.hosts[message.node]
        stage = host.stage_in(message.op)
        says = f"{NODES[message.node]} handles {message.ask} of migration {message.op + 1}"
        if self._rules.not_heard_yet(host):
            return Move(f"{says}: it is not heard yet", asks_again(world, message))
        if stage is None and self._rules.for_another_life(host, message):
            return Move(f"{says}: it is for the host before it came back", asks_again(world, message))
        if stage is None and self._rules.ranks_heeded and (message.epoch, message.order) < host.gone:
            return Move(f"{says}: it comes late", asks_again(world, message))
        if self._destinations.refuses(host, message, stage):
            return Move(f"{says}: refused", self._refused(world, message))
        if stage is None:
            return Move(f"{says}: it is charged", placed(world, message.node, self._destinations.charged(host, message)))
        ready = placed(world, message.node, replace(host, listening=host.listening | {message.op}))
        return Move(f"{says}: it is ready", gives(ready, message, ("ready", message.op, "")))

    def _resume_if_committed(self, world: World, message: Message) -> Move:
        says = f"{NODES[message.node]} handles {message.ask} of migration {message.op + 1}"
        match world.hosts[message.node].stage_in(message.op):
            case None:
                return Move(f"{says}: unknown", asks_again(world, message))
            case _ if self._rules.not_heard_yet(world.hosts[message.node]):
                return Move(f"{says}: it is not heard yet", asks_again(world, message))
            case Stage.PREPARED:
                if self._may_resume(world, message):
                    return Move(f"{says}: it may resume", self._destinations.resumes(world, message))
                return Move(f"{says}: not committed to it", asks_again(world, message))
            case Stage.ABORTED if world.hosts[message.node].copy_of(message.op) is None:
                return Move(f"{says}: it has laid down its copy", _answered(world, message, True, Ask.INSPECT_INCOMING))
            case stage:
                answered = _answered(world, message, stage is Stage.FINISHED, Ask.FINISH_OUTGOING)
                return Move(f"{says}: {stage.value.lower()} already", answered)

    def _abort_incoming(self, world: World, message: Message) -> Move:
        says = f"{NODES[message.node]} handles {message.ask} of migration {message.op + 1}"
        host = world.hosts[message.node]
        match host.stage_in(message.op):
            case Stage.PREPARED:
                if self._may_resume(world, message):
                    return Move(f"{says}: refused, it was committed", asks_again(world, message))
                return Move(f"{says}: it is to destroy its copy", self._destinations.aborts(world, message))
            case stage:
                if stage is None and host.incoming == message.op and self._rules.half_made_freed:
                    host = dropped(host)
                    world = placed(world, message.node, host)
                if stage is None and self._rules.abort_remembered:
                    remembered = replace(host, arrivals=(*host.arrivals, (message.op, Stage.ABORTED)))
                    world = placed(world, message.node, remembered)
                return Move(f"{says}: nothing to abort", _answered(world, message, True, Ask.ABORT_OUTGOING))

    def _may_resume(self, world: World, message: Message) -> bool:
        return self._rules.may_resume_arrival(world.store.owner, NODES[message.node], OPERATIONS[message.op])

    # ---- what a source answers: engine.outgoing

    def _start(self, world: World, message: Message) -> Move:
        says = f"{NODES[message.node]} handles {message.ask} of migration {message.op + 1}"
        host = world.hosts[message.node]
        if host.handoff(message.op) is None and host.epoch and self._rules.for_another_life(host, message):
            return Move(f"{says}: it is for the host before it came back", asks_again(world, message))
        if host.handoff(message.op) is None and host.epoch and self._rules.ranks_heeded and comes_late(host, message):
            return Move(f"{says}: it comes late", asks_again(world, message))
        begun = self._sources.begun(world.hosts[message.node], message, world.store.ends(message.op)[1])
        if begun is None:
            return Move(f"{says}: refused", self._refused(world, message))
        world = placed(world, message.node, begun)
        if waits(world, message):
            world = replace(world, driver=replace(IDLE, op=message.op, follows=True))
        return Move(f"{says}: it has begun", world)

    def _await_end(self, world: World, message: Message) -> Iterator[Move]:
        host = world.hosts[message.node]
        handoff = host.handoff(message.op)
        says = f"{NODES[message.node]} answers {message.ask} of migration {message.op + 1}"
        if handoff is None:
            if message.ask is not Ask.ABORT_OUTGOING:
                yield Move(f"{says}: unknown", asks_again(world, message))
                return
            copy = standing(host) or Copy.ABSENT
            copy = Copy.PAUSED if copy is Copy.SWITCHED else copy
            yield Move(f"{says}: it knows of none, {copy.value}", self._ended(world, message, Stage.ABORTED, copy))
        elif host.memory.drive(message.op) is None:
            copies = [self._sources.shown(host, handoff)]
            if world.budget.libvirt and copies[0] is not Copy.SWITCHED:
                copies.append(Copy.UNKNOWN)
            for copy in copies:
                answered = self._ended(world, message, handoff.stage, copy)
                if copy is Copy.UNKNOWN:
                    answered = spent(answered, "libvirt")
                yield Move(f"{says}: {handoff.stage.value}, {copy.value}", answered, fault=copy is Copy.UNKNOWN)

    def _ended(self, world: World, message: Message, stage: Stage, copy: Copy) -> World:
        wanted = Stage.ABORTED if message.ask is Ask.ABORT_OUTGOING else Stage.FINISHED
        doubt = message.ask is Ask.ABORT_OUTGOING and self._rules.doubt_asks_again and copy in IN_DOUBT
        laid_down = wanted is Stage.FINISHED and stage is Stage.ABORTED and copy in GONE and self._rules.laid_down_is_finished
        if (stage is not wanted and not laid_down) or doubt:
            return asks_again(world, message)
        if laid_down and waits(world, message):
            return asks(world, message.op, Ask.FORGET, message.node)
        name = {Ask.ABORT_OUTGOING: "finish abort", Ask.FINISH_OUTGOING: "finish", Ask.LOST_OUTGOING: "lost"}[message.ask]
        argument = copy.value if name == "finish abort" else ""
        return gives(world, message, (name, message.op, argument))

    def _refused(self, world: World, message: Message) -> World:
        """`turn_back`."""
        if not waits(world, message):
            return world
        operation = world.store.operation(message.op)
        if operation is None or operation.phase in (COMMITTED, ABORTING):
            return replace(world, driver=IDLE)
        return decides(world, message.op, ("abort", message.op, operation.phase))


def _asks(world: World, op: int, ask: Ask, node: int | None = None) -> Move:
    return Move(f"the driver sends {ask} of migration {op + 1}", asks(world, op, ask, node))


def _answered(world: World, message: Message, good: bool, follow_up: Ask) -> World:
    """The driver, if it waits, asks the other end; or asks anew if the answer was not good."""
    if not waits(world, message):
        return world
    return asks(world, message.op, follow_up) if good else replace(world, driver=IDLE)
