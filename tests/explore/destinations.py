"""The destination's agent in a handoff: nodeagent.engine.incoming, from await to await."""

from collections.abc import Iterator

from msgspec.structs import replace

from hostler.model.copy import Stage
from tests.explore.changes import (
    IDLE,
    Move,
    asks,
    asks_again,
    cuts,
    defined,
    destroyed,
    dropped,
    forgetful,
    gives,
    placed,
    resumed,
    waits,
)
from tests.explore.rules import Rules
from tests.explore.world import NODES, Ask, Doing, Has, Host, Message, Task, World


class DestinationMoves:
    """Called with a host: what its agent does next with the command in its hands."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def refuses(self, host: Host, message: Message, stage: Stage | None) -> bool:
        """A PrepareIncoming: the host is being laid down, this handoff has ended here, the epoch is old, or a copy is here that is not its own."""
        leftover = host.domain if stage is None else None
        another = leftover is not None and (leftover.has is Has.RUNNING or (host.epoch > 0 and host.incoming < 0))
        laying = self._rules.laying_refuses and host.laying is not None
        return laying or stage not in (None, Stage.PREPARED) or host.epoch > message.epoch or another

    def charged(self, host: Host, message: Message) -> Host:
        """H1 begins."""
        charged = replace(destroyed(host), epoch=message.epoch, incoming=message.op, order=message.order)
        return replace(charged, task=Task(Doing.KEEP_PREPARED, message))

    def resumes(self, world: World, message: Message) -> World:
        """On what was read: just now, or in the answer to its own question."""
        host = world.hosts[message.node]
        epoch = message.epoch if message.ask is Ask.COMMIT_KNOWN else world.store.owner.epoch
        return placed(world, message.node, replace(host, task=Task(Doing.RESUME, message, epoch)))

    def aborts(self, world: World, message: Message) -> World:
        host = world.hosts[message.node]
        return placed(world, message.node, replace(host, task=Task(Doing.CLOSE, message)))

    def __call__(self, world: World, node: int, host: Host) -> Iterator[Move]:
        task = host.task
        if task is None or not host.up:
            return
        name, op, message = NODES[node], task.message.op, task.message
        idle = replace(host, task=None)
        mine = host.copy_of(op)

        def then(doing: Doing, changed: Host) -> World:
            return placed(world, node, replace(changed, task=replace(task, doing=doing)))

        match task.doing:
            case Doing.KEEP_PREPARED:
                ready = replace(forgetful(idle), arrivals=(*idle.arrivals, (op, Stage.PREPARED)), listening=idle.listening | {op})
                yield Move(f"{name} writes down that it is ready", gives(placed(world, node, ready), message, ("ready", op, "")))
            case Doing.RESUME if mine is None or mine.has is Has.INCOMING:
                lost = placed(world, node, idle)
                if waits(world, message) and message.ask is Ask.FINISH_INCOMING:
                    lost = asks(replace(lost, driver=IDLE), op, Ask.INSPECT_INCOMING)
                yield Move(f"{name} has nothing to resume", lost)
            case Doing.RESUME if self._rules.locks_bar and world.locked_against(node):
                barred = asks_again(placed(world, node, idle), message)
                yield Move(f"{name} cannot resume its copy: another holds the disk's lock", barred)
            case Doing.RESUME:
                yield Move(f"{name} resumes its copy", then(Doing.KEEP_RESUMED, resumed(host)))
            case Doing.KEEP_RESUMED:
                kept = placed(unasked(world, node, op), node, defined(staged(idle, op, Stage.FINISHED), task.epoch))
                yield Move(f"{name} writes down that it runs", _answered(kept, message, Ask.FINISH_OUTGOING))
            case Doing.CLOSE:
                closed = then(Doing.DESTROY, replace(host, listening=host.listening - {op}))
                yield Move(f"{name} closes the tunnel", cuts(closed, op))
            case Doing.DESTROY:
                yield Move(f"{name} destroys its copy", then(Doing.KEEP_ABORTED, host if mine is None else destroyed(host)))
            case Doing.KEEP_ABORTED:
                kept = placed(unasked(world, node, op), node, dropped(staged(idle, op, Stage.ABORTED)))
                yield Move(f"{name} writes down the abort", _answered(kept, message, Ask.ABORT_OUTGOING))


def unasked(world: World, node: int, op: int) -> World:
    """Whatever comes in answer to its own question about this migration is not heeded any more."""
    answers = {message for message in world.net if (message.ask, message.op, message.node) == (Ask.COMMIT_KNOWN, op, node)}
    return replace(world, net=world.net - answers) if answers else world


def staged(host: Host, op: int, stage: Stage) -> Host:
    return replace(host, arrivals=tuple([(other, stage if other == op else was) for other, was in host.arrivals]))


def _answered(world: World, message: Message, follow_up: Ask) -> World:
    return asks(world, message.op, follow_up) if waits(world, message) else world
