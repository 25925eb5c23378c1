"""Hosts that lose their power, a person's fence, the start of a VM elsewhere, and the host that comes back.

Mirrored by hand: nodeagent.engine.vms (`define`, `start`, `stop`), laying_down and link, scheduler.engine.flows.vms (`start`) and nodes (`fence`),
and rpc.cluster_link for a VM that its owner calls off. Whom the gateway takes for fenced, and what it answers then, is the product's own (`Rules`).
What a host has on its disk outlives its power; its guests, its libvirt's calls and what was being said to it do not. A copy that waits,
complete, at the other end of a call stays.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from hostler.model.copy import Stage
from hostler.model.owner import OwnerState, may_run
from nodeagent.core.definitions import EpochVerdict, judge_epoch
from nodeagent.core.observed import Power
from nodeagent.core.outgoing import Ending
from scheduler.core.steps import ROLLBACK, STARTING
from tests.explore.changes import Move, cuts, decides, gives, source_ends, spent, waits
from tests.explore.rules import Rules
from tests.explore.world import (
    ASKED_OF,
    DESTINATION,
    FENCES,
    MIGRATIONS,
    SOURCE,
    STARTS,
    Ask,
    Cold,
    Decision,
    Driver,
    Message,
    Starting,
    Step,
    Store,
    World,
)

NODES = (SOURCE, DESTINATION)

Write = Callable[[Store, Decision], Store | None]
Wants = Callable[[Store, Decision], bool]


class HostMoves:
    """Called with a world: what hosts and their people may do next. `step` is what a driver does for a fence or a start."""

    def __init__(self, rules: Rules, write: Write, wants: Wants) -> None:
        self._rules = rules
        self._write = write
        self._wants = wants

    def __call__(self, world: World) -> Iterator[Move]:
        yield from self._power(world)
        yield from self._people(world)
        yield from self._messages(world)
        for starting in world.starting:
            yield from self._start(world, starting)
        for node in NODES:
            yield from self._returns(world, node)
            yield from self._tells_off(world, node)

    # ---- power

    def _power(self, world: World) -> Iterator[Move]:
        for node in NODES:
            if world.budget.power and node not in world.off:
                yield Move(f"{node} loses its power", spent(_without_power(world, node), "power"), fault=True)
            if node in world.off and not world.budget.stays_off:
                back = replace(world, off=world.off - {node}, unheard=world.unheard | {node})
                yield Move(f"{node} has power again, nothing runs there", back)

    # ---- people

    def _people(self, world: World) -> Iterator[Move]:
        for op, node in zip(FENCES, NODES, strict=True):
            decision = ("fence", op, node)
            if world.store.operation(op) is not None or world.store.fenced(node):
                continue
            is_off = node in world.off or (node in world.unheard and not world.agent_up(node))
            if world.budget.fences and is_off and (after := self._write(world.store, decision)) is not None:
                yield Move(f"a person fences {node}, which is off", spent(replace(world, store=after), "fences"))
            if world.budget.wrong_fences and not is_off and not world.agent_up(node) and (after := self._write(world.store, decision)):
                fenced = spent(replace(world, store=after), "wrong_fences")
                yield Move(f"a person fences {node}, whose agent alone is gone", fenced, fault=True)
        begun = sum(world.store.operation(op) is not None for op in STARTS)
        if world.budget.starts and world.store.owner.state is OwnerState.STOPPED:
            after = self._write(world.store, ("start", STARTS[begun], ""))
            if after is not None:
                moved = after.owner.node_id != world.store.owner.node_id
                says = f"a person starts the VM, {f'on {after.owner.node_id} now' if moved else f'where it is, on {after.owner.node_id}'}"
                yield Move(says, spent(replace(world, store=after), "starts"))

    # ---- the driver: flows.nodes and flows.vms

    def step(self, world: World, op: int, phase: str) -> Iterator[Move]:
        store = world.store
        if op in FENCES:
            for name in ("stop its VMs", "finish fence"):
                if self._wants(store, (name, op, "")):
                    yield Move(f"the driver is to `{name}`", decides(world, op, (name, op, "")))
                    return
            return
        epoch = store.owner.epoch
        ask = {"ACCEPTED": Ask.DEFINE, STARTING: Ask.START_VM, ROLLBACK: Ask.STOP_VM}[phase]
        node = store.owner.node_id
        message = Message(ask, op, world.call, epoch, node=node)
        reaches = node not in world.off and not store.fenced(node)
        asking = replace(world, driver=Driver(op, asked=ask, node=node), net=world.net | {message} if reaches else world.net)
        yield Move(f"the driver sends {ask} under epoch {epoch} to {node}", asking)

    def refused(self, world: World, message: Message) -> World:
        """`turn_back_start`."""
        if not waits(world, message):
            return world
        if message.ask is Ask.DEFINE:
            return decides(world, message.op, ("start failed", message.op, "ACCEPTED"))
        if message.ask is Ask.START_VM:
            return decides(world, message.op, ("roll back", message.op, ""))
        return replace(world, driver=Driver())

    def stopped(self, world: World, message: Message) -> World:
        return gives(world, message, ("start failed", message.op, ROLLBACK))

    # ---- the agents: engine.vms

    def _messages(self, world: World) -> Iterator[Move]:
        for message in world.net:
            rest = replace(world, net=world.net - {message})
            if message.ask is Ask.REPORT:
                decision = ("is off", message.op, f"{message.node}/{message.epoch}/{message.revision}")
                after = self._write(world.store, decision)
                verdict = "is written" if after else "is out of date"
                yield Move(f"{message.node}'s word that its VM is off {verdict}", rest if after is None else replace(rest, store=after))
            if message.ask not in (Ask.DEFINE, Ask.START_VM, Ask.STOP_VM) or not world.agent_up(message.node):
                continue
            if world.starting_at(message.node) is not None or (message.node == DESTINATION and world.task is not None):
                continue  # the VM's lock
            yield self._handle(rest, message)

    def _handle(self, world: World, message: Message) -> Move:
        node, says = message.node, f"{message.node} handles {message.ask} under epoch {message.epoch}"
        known = world.defined_under(node)
        if dict(world.laying).get(node) and self._rules.laying_refuses and message.ask is not Ask.STOP_VM:
            return Move(f"{says}: it was fenced", self.refused(world, message))
        if known == 0 and message.ask is not Ask.DEFINE:
            return Move(f"{says}: not defined", self.refused(world, message))
        if known and judge_epoch(known, message.epoch) is EpochVerdict.STALE:
            return Move(f"{says}: stale", self.refused(world, message))
        world = _defined(world, node, message.epoch)
        match message.ask:
            case Ask.DEFINE:
                return Move(says, gives(world, message, ("starting", message.op, "")))
            case Ask.STOP_VM:
                return Move(says, self.stopped(_destroyed(world, node), message))
        there = world.cold_at(node)
        if there is not None and there.epoch == message.epoch:
            if there.runs:
                return Move(f"{says}: it runs", gives(world, message, ("started", message.op, "")))
            step = Step.READ
        else:
            step = Step.CREATE
        return Move(says, replace(world, starting=(*world.starting, Starting(node, step, message))))

    def _start(self, world: World, starting: Starting) -> Iterator[Move]:
        node, message = starting.node, starting.message
        ended = replace(world, starting=tuple(other for other in world.starting if other.node != node))

        def at(step: Step, after: World) -> World:
            return replace(after, starting=(*(other for other in after.starting if other.node != node), replace(starting, step=step)))

        match starting.step:
            case Step.CREATE:
                clean = _destroyed(world, node)
                if self._rules.locks_bar and clean.locked_against(node):
                    refused = self.refused(_destroyed(ended, node), message)
                    yield Move(f"{node} cannot make the domain: another holds the disk's lock", refused)
                else:
                    made = replace(clean, colds=(*clean.colds, Cold(node, message.epoch)))
                    yield Move(f"{node} makes the domain, paused", at(Step.READ, made))
            case Step.READ:
                may = may_run(world.store.owner, node, message.epoch) or not self._rules.start_reads_again
                owner = world.store.owner
                says = f"{node} reads the owner record: {owner.state.value} of {owner.node_id} under epoch {owner.epoch}"
                yield Move(says, at(Step.RESUME if may else Step.REFUSE, world))
            case Step.RESUME:
                if world.cold_at(node) is None:
                    yield Move(f"{node} has no domain to resume", self.refused(ended, message))
                else:
                    yield Move(f"{node} lets the VM run", gives(self.resumed(ended, node), message, ("started", message.op, "")))
            case Step.REFUSE:
                yield Move(f"{node} may not run it, and destroys the domain", self.refused(_destroyed(ended, node), message))
            case _:
                raise RuntimeError(f"a start that is at {starting.step}")

    def resumed(self, world: World, node: str) -> World:
        cold = world.cold_at(node)
        return world if cold is None else replace(world, colds=(*world.without_cold(node), replace(cold, runs=True)))

    def killed(self, world: World, node: str) -> World:
        """By a handoff that is over: one that the record lets run is wronged."""
        cold, owner = world.cold_at(node), world.store.owner
        if cold is None:
            return world
        wrong = may_run(owner, node, cold.epoch)
        return replace(
            world,
            colds=world.without_cold(node),
            wronged="the owner's guest is killed by a handoff that is over" if wrong else world.wronged,
        )

    # ---- the host that comes back: engine.link and engine.laying_down

    def _returns(self, world: World, node: str) -> Iterator[Move]:
        if not world.agent_up(node):
            return
        step = dict(world.laying).get(node)
        if step is Step.FORGET:
            over = replace(world, laying=tuple(other for other in world.laying if other[0] != node))
            if world.store.owner.node_id != node and self._rules.laying_forgets_last:
                over = replace(over, source_epoch=0) if node == SOURCE else replace(over, destination_epoch=0)
            yield Move(f"{node}'s agent forgets what was started elsewhere before it was heard", over)
            return
        if not world.store.fenced(node):
            if node in world.unheard:
                after = self._write(world.store, ("registers", FENCES[0], node))
                heard = replace(world, unheard=world.unheard - {node}, store=world.store if after is None else after)
                yield Move(f"{node}'s agent registers under its new boot", heard)
            return
        if step is None and (taken := self._write(world.store, ("registers", FENCES[0], node))) is not None:
            yield Move(f"{node}'s agent is heard, fenced or not", replace(world, store=taken, unheard=world.unheard - {node}))
        elif step is None:
            begun = replace(world, laying=(*world.laying, (node, Step.KILL)))
            yield Move(f"{node}'s agent hears that its host was fenced", begun)
        elif step is Step.KILL:
            next_step = _laid(world, node, Step.LET_GO)
            yield Move(f"{node}'s agent ends every guest", _all_killed(next_step, node) if self._rules.lays_down else next_step)
        elif step is Step.LET_GO:
            if world.starting_at(node) is None and (node == SOURCE or world.task is None):
                over = _laid(world, node, Step.REGISTER)
                over = _all_killed(over, node) if self._rules.lays_down and self._rules.laying_ends_all else over
                yield Move(f"{node}'s agent ends what is there since, and its handoffs; forgets what is not its own", _let_go(over, node))
        else:
            written = self._write(world.store, ("registers, laid down", FENCES[0], node))
            over = replace(_laid(world, node, Step.FORGET), unheard=world.unheard - {node})
            heard = replace(_unasked(over, node), store=world.store if written is None else written)
            yield Move(f"{node} is heard again, cordoned", heard)

    def _tells_off(self, world: World, node: str) -> Iterator[Move]:
        """A report that a VM is off makes a replica ask; the answer counts if the record is still the one from before the question."""
        budget, owner = world.budget, world.store.owner
        if not (world.died or budget.starts) or not world.agent_up(node) or node in world.unheard or world.store.fenced(node):
            return
        if owner.node_id != node or owner.state is not OwnerState.RUNNING or world.store.vm.record.operation_id or _domain(world, node):
            return
        incoming = node == DESTINATION and not world.taken
        said = Message(Ask.REPORT, 0, 0, world.defined_under(node), world.store.vm.revision, node=node)
        if said.epoch == owner.epoch and not incoming and not any(message.ask is Ask.REPORT for message in world.net):
            yield Move(f"{node} answers that its VM is off", replace(world, net=world.net | {said}))


def _domain(world: World, node: str) -> bool:
    if world.cold_at(node) is not None:
        return True
    return world.process is not None if node == SOURCE else world.arriving is not None


def _destroyed(world: World, node: str) -> World:
    """Whatever domain of the VM the node has."""
    if world.cold_at(node) is not None:
        world = replace(world, colds=world.without_cold(node))
    if node == DESTINATION:
        return replace(world, arriving=None)
    return world if world.process is None else source_ends(world, Ending.OTHERWISE, died=False)


def _all_killed(world: World, node: str) -> World:
    cold = world.cold_at(node)
    ran = (cold is not None and cold.runs) or (
        (world.process is not None and world.process.power is Power.RUNNING)
        if node == SOURCE
        else (world.arriving is not None and world.arriving.power is Power.RUNNING)
    )
    return replace(_destroyed(world, node), died=world.died or ran)


def _defined(world: World, node: str, epoch: int) -> World:
    if node == SOURCE:
        return replace(world, source_epoch=epoch)
    return replace(world, destination_epoch=epoch, taken=True)


def _laid(world: World, node: str, step: Step) -> World:
    return replace(world, laying=tuple((other, step if other == node else was) for other, was in world.laying))


def _let_go(world: World, node: str) -> World:
    mine = world.store.owner.node_id == node
    if node == SOURCE:
        open_ones = (Stage.FINISHED, Stage.ABORTED)
        handoffs = tuple(one if one.stage in open_ones else replace(one, stage=Stage.ABORTED) for one in world.handoffs)
        return replace(world, handoffs=handoffs, source_epoch=world.source_epoch if mine else 0)
    for op in MIGRATIONS:
        if op in world.listening:
            world = cuts(world, op)
    incoming = tuple((op, Stage.ABORTED if stage is Stage.PREPARED else stage) for op, stage in world.incoming)
    return replace(world, listening=frozenset(), incoming=incoming, destination_epoch=world.destination_epoch if mine else 0)


def _asked_of(message: Message) -> str:
    return message.node or ASKED_OF.get(message.ask, DESTINATION if message.ask is Ask.NOTE_COMMITTED else "")


def _unasked(world: World, node: str) -> World:
    """Nothing that was said to the node before is on its way any more: its connections are gone, the gateway has answered in its place."""
    driver = world.driver
    if driver is not None and driver.asked is not None and (driver.node or ASKED_OF[driver.asked]) == node:
        world = replace(world, driver=Driver())
    return replace(world, net=frozenset(message for message in world.net if message.ask is Ask.REPORT or _asked_of(message) != node))


def _without_power(world: World, node: str) -> World:
    cold = world.cold_at(node)
    ran = cold is not None and cold.runs
    if node == SOURCE:
        ran = ran or (world.process is not None and world.process.power is Power.RUNNING)
        arriving = world.arriving if world.arriving is not None and world.arriving.power is not Power.INCOMING else None
        dark = replace(world, source=None, process=None, job=None, record=Ending.UNTOLD, arriving=arriving)
    else:
        ran = ran or (world.arriving is not None and world.arriving.power is Power.RUNNING)
        job = world.job if world.job is None else replace(world.job, tunnel=False)
        dark = replace(world, destination=False, task=None, listening=frozenset(), arriving=None, job=job)
    return replace(
        _unasked(dark, node),
        colds=world.without_cold(node),
        off=world.off | {node},
        unheard=world.unheard - {node},
        starting=tuple(starting for starting in world.starting if starting.node != node),
        laying=tuple(other for other in world.laying if other[0] != node),
        died=world.died or ran,
    )
