"""Hosts that lose their power, a person's fence, the start of a VM (elsewhere), its cold move, and the host that comes back.

Mirrored by hand: nodeagent.engine.vms (`define`, `start`, `stop`, `forget`), laying_down and link, scheduler.engine.flows.vms (`start`), nodes
(`fence`) and the answers of cold_migration, and rpc.cluster_link for a VM that its owner calls off. Whom the gateway takes for fenced, and what it
answers then, is the product's own (`Rules`). What a host has on its disk outlives its power; its guests, its libvirt's calls and what was being
said to it do not. A copy that waits, complete, at the other end of a call stays.
"""

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from hostler.model.copy import Stage
from hostler.model.node import VMPower
from hostler.model.owner import OwnerState, may_run
from nodeagent.core.definitions import EpochVerdict, judge_epoch
from scheduler.core.steps import ABORTING, COMMITTED, ROLLBACK, STARTING
from tests.explore.changes import (
    IDLE,
    Move,
    asks,
    asks_again,
    buried,
    comes_late,
    cuts,
    decides,
    defined,
    destroyed,
    dropped,
    forgetful,
    gives,
    placed,
    resumed,
    spent,
    waits,
)
from tests.explore.rules import Rules
from tests.explore.sources import standing
from tests.explore.world import (
    FENCES,
    MIGRATIONS,
    NODES,
    STARTS,
    Ask,
    Decision,
    Domain,
    Has,
    Host,
    Memory,
    Message,
    Starting,
    Step,
    Store,
    World,
)

Write = Callable[[Store, Decision], Store | None]
Wants = Callable[[Store, Decision], bool]

OF_A_VM = frozenset({Ask.DEFINE, Ask.START_VM, Ask.STOP_VM})


class HostMoves:
    """Called with a world: what hosts and their people may do next. `step` is what a driver does for a fence or a start."""

    def __init__(self, rules: Rules, write: Write, wants: Wants) -> None:
        self._rules = rules
        self._write = write
        self._wants = wants

    def __call__(self, world: World) -> Iterator[Move]:
        yield from self._people(world)
        yield from self._messages(world)
        for node, host in enumerate(world.hosts):
            yield from self._power(world, node, host)
            if not host.up:
                continue
            yield from self.starts(world, node, host)
            yield from self._returns(world, node, host)
            yield from self._tells_off(world, node, host)

    # ---- power

    def _power(self, world: World, node: int, host: Host) -> Iterator[Move]:
        if world.budget.power and not host.off:
            yield Move(f"{NODES[node]} loses its power", spent(_without_power(world, node), "power"), fault=True)
        if host.off and not world.budget.stays_off:
            back = placed(world, node, replace(host, off=False, unheard=True))
            yield Move(f"{NODES[node]} has power again, nothing runs there", back)

    # ---- people

    def _people(self, world: World) -> Iterator[Move]:
        budget = world.budget
        if budget.fences or budget.wrong_fences:
            for node, host in enumerate(world.hosts):
                yield from self._fence(world, node, host)
        if budget.starts and world.store.owner.state is OwnerState.STOPPED:
            begun = sum(world.store.operation(op) is not None for op in STARTS)
            after = self._write(world.store, ("start", STARTS[begun], ""))
            if after is not None:
                moved = after.owner.node_id != world.store.owner.node_id
                says = f"a person starts the VM, {f'on {after.owner.node_id} now' if moved else f'where it is, on {after.owner.node_id}'}"
                yield Move(says, spent(replace(world, store=after), "starts"))

    def _fence(self, world: World, node: int, host: Host) -> Iterator[Move]:
        decision = ("fence", FENCES[node], NODES[node])
        if world.store.operation(FENCES[node]) is not None or world.store.fenced(node):
            return
        if world.budget.fences and host.dark and (after := self._write(world.store, decision)) is not None:
            yield Move(f"a person fences {NODES[node]}, which is off", spent(replace(world, store=after), "fences"))
        silent = not host.up or not world.heard(node)
        if world.budget.wrong_fences and not host.dark and silent and (after := self._write(world.store, decision)) is not None:
            fenced = spent(replace(world, store=after), "wrong_fences")
            why = "whose agent alone is gone" if not host.up else "which is cut off"
            yield Move(f"a person fences {NODES[node]}, {why}", fenced, fault=True)

    # ---- the driver: flows.nodes and flows.vms

    def step(self, world: World, op: int, phase: str) -> Iterator[Move]:
        if op in FENCES:
            for name in ("stop its VMs", "finish fence"):
                if self._wants(world.store, (name, op, "")):
                    yield Move(f"the driver is to `{name}`", decides(world, op, (name, op, "")))
                    return
            return
        ask = {"ACCEPTED": Ask.DEFINE, STARTING: Ask.START_VM, ROLLBACK: Ask.STOP_VM}[phase]
        owner = world.store.owner
        asking = asks(world, op, ask, NODES.index(owner.node_id))
        yield Move(f"the driver sends {ask} under epoch {owner.epoch} to {owner.node_id}", asking)

    def refused(self, world: World, message: Message) -> World:
        """`turn_back_start`."""
        if not waits(world, message):
            return world
        if message.op in MIGRATIONS:
            return self.cold_refused(world, message)
        if message.ask is Ask.DEFINE:
            return decides(world, message.op, ("start failed", message.op, "ACCEPTED"))
        if message.ask is Ask.START_VM:
            return decides(world, message.op, ("roll back", message.op, ""))
        return replace(world, driver=IDLE)

    def cold_refused(self, world: World, message: Message) -> World:
        """`cold_migration.turn_back`."""
        operation = world.store.operation(message.op)
        if not waits(world, message):
            return world
        if operation is None or operation.phase in (COMMITTED, ABORTING):
            return replace(world, driver=IDLE)
        return decides(world, message.op, ("abort cold", message.op, ""))

    def stopped(self, world: World, message: Message) -> World:
        return gives(world, message, ("start failed", message.op, ROLLBACK))

    def forgotten(self, world: World, message: Message) -> World:
        operation = world.store.operation(message.op)
        committed = operation is not None and operation.phase == COMMITTED
        if operation is not None and operation.migration is not None and not operation.migration.cold:
            arrived = world.hosts[world.store.ends(message.op)[1]].stage_in(message.op) is Stage.FINISHED
            return gives(world, message, ("finish" if arrived else "lost", message.op, ""))
        return gives(world, message, ("finish cold" if committed else "finish cold abort", message.op, ""))

    def inspected(self, world: World, message: Message, *, absent: bool) -> World:
        """The source's word, about the record that was read before it was asked."""
        if absent:
            return gives(world, message, ("change owner", message.op, str(message.revision)))
        return self.cold_refused(world, message)

    # ---- the agents: engine.vms

    def _messages(self, world: World) -> Iterator[Move]:
        for message in world.net:
            if message.ask is Ask.REPORT:
                if world.heard(message.node):
                    yield self._report(world, message)
                continue
            if message.node < 0 or not world.hosts[message.node].up or not world.heard(message.node):
                continue
            host = world.hosts[message.node]
            if message.ask in OF_A_VM and not host.busy:
                yield self._handle(replace(world, net=world.net - {message}), message)
            elif message.ask is Ask.FORGET and not host.busy:
                yield self._forget(replace(world, net=world.net - {message}), message)
            elif message.ask is Ask.INSPECT_COLD:
                absent = standing(host) is None
                says = f"{NODES[message.node]} answers {message.ask}: {'absent' if absent else 'there is a domain'}"
                yield Move(says, self.inspected(replace(world, net=world.net - {message}), message, absent=absent))

    def _report(self, world: World, message: Message) -> Move:
        rest = replace(world, net=world.net - {message})
        decision = ("is off", message.op, f"{NODES[message.node]}/{message.epoch}/{message.revision}")
        after = self._write(world.store, decision)
        verdict = "is written" if after else "is out of date"
        return Move(f"{NODES[message.node]}'s word that its VM is off {verdict}", rest if after is None else replace(rest, store=after))

    def _handle(self, world: World, message: Message) -> Move:
        node, host = message.node, world.hosts[message.node]
        says = f"{NODES[node]} handles {message.ask} under epoch {message.epoch}"
        if host.laying is not None and self._rules.laying_refuses and message.ask is not Ask.STOP_VM:
            return Move(f"{says}: it was fenced", self.refused(world, message))
        if message.ask is not Ask.STOP_VM and self._rules.not_heard_yet(host):
            return Move(f"{says}: it is not heard yet", asks_again(world, message))
        if (host.epoch or message.ask is Ask.DEFINE) and self._rules.for_another_life(host, message):
            return Move(f"{says}: it is for the host before it came back", asks_again(world, message))
        if host.epoch == 0 and message.ask is Ask.STOP_VM:
            gone = placed(world, node, buried(host, message.epoch, message.order))
            return Move(f"{says}: not defined", self.stopped(gone, message))
        if host.epoch == 0 and message.ask is not Ask.DEFINE:
            return Move(f"{says}: not defined", self.refused(world, message))
        if host.epoch and judge_epoch(host.epoch, message.epoch) is EpochVerdict.STALE and self._rules.epochs_judged:
            return Move(f"{says}: stale", self.refused(world, message))
        if self._rules.ranks_heeded and comes_late(host, message):
            return Move(f"{says}: it comes late", asks_again(world, message))
        host = replace(defined(host, message.epoch), order=message.order)
        match message.ask:
            case Ask.DEFINE:
                after = placed(world, node, host)
                return Move(says, gives(after, message, ("cold defined" if message.op in MIGRATIONS else "starting", message.op, "")))
            case Ask.STOP_VM:
                return Move(says, self.stopped(placed(world, node, destroyed(host)), message))
        if host.domain is None and host.ran == message.epoch and self._rules.runs_once:
            ended = gives(placed(world, node, host), message, ("started", message.op, VMPower.OFF.value))
            return Move(f"{says}: it has run, and ended", ended)
        step = Step.CREATE
        if host.domain is not None and host.domain.epoch == message.epoch:
            if host.domain.has is Has.RUNNING:
                return Move(f"{says}: it runs", gives(placed(world, node, host), message, ("started", message.op, "")))
            step = Step.READ
        return Move(says, placed(world, node, replace(host, starting=Starting(step, message))))

    def _forget(self, world: World, message: Message) -> Move:
        node, host = message.node, world.hosts[message.node]
        says = f"{NODES[node]} handles {message.ask} under epoch {message.epoch}"
        if host.epoch == 0:
            gone = placed(world, node, buried(host, message.epoch, message.order))
            return Move(f"{says}: it knows of none", self.forgotten(gone, message))
        late = self._rules.for_another_life(host, message) or (self._rules.ranks_heeded and comes_late(host, message))
        if late or judge_epoch(host.epoch, message.epoch) is EpochVerdict.STALE or host.domain is not None:
            return Move(f"{says}: refused", asks_again(world, message))
        heard = replace(defined(host, message.epoch), order=message.order)
        return Move(says, self.forgotten(placed(world, node, dropped(_handoffs_ended(heard))), message))

    def starts(self, world: World, node: int, host: Host) -> Iterator[Move]:
        """A StartVM in the agent's hands goes on."""
        if host.starting is None:
            return
        message, name = host.starting.message, NODES[node]
        idle = replace(host, starting=None)

        def at(step: Step, changed: Host) -> World:
            return placed(world, node, replace(changed, starting=Starting(step, message)))

        match host.starting.step:
            case Step.CREATE:
                clean = destroyed(host)
                if self._rules.locks_bar and world.locked_against(node):
                    barred = self.refused(placed(world, node, destroyed(idle)), message)
                    yield Move(f"{name} cannot make the domain: another holds the disk's lock", barred)
                else:
                    made = replace(forgetful(clean), domain=Domain(message.epoch, Has.PAUSED))
                    yield Move(f"{name} makes the domain, paused", at(Step.READ, made))
            case Step.READ if not world.heard(node) and not self._rules.unread_is_no:
                yield Move(f"{name} cannot read the owner record, and takes that for a yes", at(Step.RESUME, host))
            case Step.READ if not world.heard(node) and self._rules.start_reads_again:
                yield Move(f"{name} cannot read the owner record, and leaves the domain paused", placed(world, node, idle))
            case Step.READ:
                owner = world.store.owner
                may = may_run(owner, name, message.epoch) or not self._rules.start_reads_again
                says = f"{name} reads the owner record: {owner.state.value} of {owner.node_id} under epoch {owner.epoch}"
                yield Move(says, at(Step.RESUME if may else Step.REFUSE, host))
            case Step.RESUME if host.domain is None:
                yield Move(f"{name} has no domain to resume", self.refused(placed(world, node, idle), message))
            case Step.RESUME:
                runs = replace(resumed(idle), ran=message.epoch)
                yield Move(f"{name} lets the VM run", gives(placed(world, node, runs), message, ("started", message.op, "")))
            case Step.REFUSE:
                refused = self.refused(placed(world, node, destroyed(idle)), message)
                yield Move(f"{name} may not run it, and destroys the domain", refused)
            case step:
                raise RuntimeError(f"a start that is at {step}")

    # ---- the host that comes back: engine.link and engine.laying_down

    def _returns(self, world: World, node: int, host: Host) -> Iterator[Move]:
        name, laying = NODES[node], host.laying
        if not world.heard(node) and laying is not Step.KILL:
            return
        if laying is Step.AGAIN:
            yield self._goes_on_laying_down(world, node, host)
        elif laying is Step.FORGET:
            over = replace(host, laying=None)
            if world.store.owner.node_id != name and self._rules.laying_forgets_last:
                over = dropped(over)
            yield Move(f"{name}'s agent forgets what was started elsewhere before it was heard", placed(world, node, over))
        elif not world.store.fenced(node):
            if host.unheard:
                after = self._write(world.store, ("registers", FENCES[0], name))
                yield Move(f"{name}'s agent registers under its new boot", _registered(world, node, host, after))
        elif laying is None and (taken := self._write(world.store, ("registers", FENCES[0], name))) is not None:
            yield Move(f"{name}'s agent is heard, fenced or not", _registered(world, node, host, taken))
        elif laying is None:
            yield Move(f"{name}'s agent hears that its host was fenced", placed(world, node, replace(host, laying=Step.KILL)))
        elif laying is Step.KILL:
            bare = _killed(world, node) if self._rules.lays_down else world
            yield Move(f"{name}'s agent ends every guest", placed(bare, node, replace(bare.hosts[node], laying=Step.LET_GO)))
        elif laying is Step.LET_GO:
            if not host.busy:
                bare = _killed(world, node) if self._rules.lays_down and self._rules.laying_ends_all else world
                bare = placed(bare, node, replace(bare.hosts[node], laying=Step.REGISTER))
                says = f"{name}'s agent ends what is there since, and its handoffs; forgets what is not its own"
                yield Move(says, _let_go(bare, node))
        else:
            written = self._write(world.store, ("registers, laid down", FENCES[0], name))
            asked = _unasked(world, node)
            yield Move(f"{name} is heard again, cordoned", _registered(asked, node, replace(host, laying=Step.FORGET), written))
            if world.budget.messages and written is not None:
                unanswered = replace(placed(asked, node, replace(host, laying=Step.AGAIN)), store=written)
                yield Move(f"{name} is heard again, cordoned; the answer is lost", spent(unanswered, "messages"), fault=True)

    def _goes_on_laying_down(self, world: World, node: int, host: Host) -> Move:
        if world.store.fenced(node):
            return Move(f"{NODES[node]}'s agent hears again that its host was fenced", placed(world, node, replace(host, laying=Step.KILL)))
        after = self._write(world.store, ("registers", FENCES[0], NODES[node])) if host.unheard else None
        host = replace(host, laying=Step.FORGET if self._rules.laying_kept else None)
        return Move(f"{NODES[node]}'s agent registers, as one that was laid down", _registered(world, node, host, after))

    def _tells_off(self, world: World, node: int, host: Host) -> Iterator[Move]:
        """A report that a VM is off makes a replica ask; the answer counts if the record is still the one from before the question."""
        owner = world.store.owner
        if not (world.died or world.budget.starts) or host.unheard or not world.heard(node):
            return
        if owner.node_id != NODES[node] or owner.state is not OwnerState.RUNNING or world.store.vm.record.operation_id:
            return
        if host.domain is not None or host.incoming >= 0 or host.epoch != owner.epoch or world.store.fenced(node):
            return
        if not any(message.ask is Ask.REPORT for message in world.net):
            said = Message(Ask.REPORT, 0, node, 0, host.epoch, world.store.vm.revision)
            yield Move(f"{NODES[node]} answers that its VM is off", replace(world, net=world.net | {said}))


def _registered(world: World, node: int, host: Host, store: Store | None) -> World:
    """The host's agent has heard that it is registered, by what was written for it (None: it was so already)."""
    store = world.store if store is None else store
    return replace(placed(world, node, replace(host, unheard=False, incarnation=store.incarnation(node))), store=store)


def _killed(world: World, node: int) -> World:
    """Every guest of the host is ended, unasked."""
    host = world.hosts[node]
    ran = host.domain is not None and host.domain.has is Has.RUNNING
    return replace(placed(world, node, destroyed(host)), died=world.died or ran)


def _handoffs_ended(host: Host) -> Host:
    """`HostState.end_handoffs_of`."""
    over = (Stage.FINISHED, Stage.ABORTED)
    handoffs = tuple([one if one.stage in over else replace(one, stage=Stage.ABORTED) for one in host.handoffs])
    arrivals = tuple([(op, Stage.ABORTED if stage is Stage.PREPARED else stage) for op, stage in host.arrivals])
    return replace(host, handoffs=handoffs, arrivals=arrivals)


def _let_go(world: World, node: int) -> World:
    mine = world.store.owner.node_id == NODES[node]
    for op in world.hosts[node].listening:
        world = cuts(world, op)
    host = replace(_handoffs_ended(world.hosts[node]), listening=frozenset())
    return placed(world, node, host if mine else dropped(host))


def _unasked(world: World, node: int) -> World:
    """Nothing that was said to the node before is on its way any more: its connections are gone, the gateway has answered in its place."""
    driver = world.driver
    if driver is not None and driver.asked is not None and driver.node == node:
        world = replace(world, driver=IDLE)
    stays = (Ask.REPORT, Ask.COMMIT, Ask.COMMIT_WRITE, Ask.STEP_WRITE)
    return replace(world, net=frozenset([message for message in world.net if message.ask in stays or message.node != node]))


def _without_power(world: World, node: int) -> World:
    host = world.hosts[node]
    ran = host.domain is not None and host.domain.has is Has.RUNNING
    if host.job is not None:
        copy = world.hosts[host.job.to].copy_of(host.job.op)
        if copy is not None and copy.has is Has.INCOMING:
            world = placed(world, host.job.to, replace(world.hosts[host.job.to], domain=None))
    for op in MIGRATIONS:
        if any(other.job is not None and other.job.op == op and other.job.to == node for other in world.hosts):
            world = cuts(world, op)
    kept = Host(
        False, Memory(), host.epoch, host.incoming, host.order, host.ran, host.gone, host.handoffs, host.arrivals, off=True,
        laying=None if host.laying is None else Step.AGAIN, incarnation=host.incarnation,
    )  # fmt: skip
    return replace(_unasked(placed(world, node, kept), node), died=world.died or ran)
