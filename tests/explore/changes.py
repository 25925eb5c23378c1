"""What several kinds of moves change in the same way."""

from dataclasses import dataclass, replace

from nodeagent.core.outgoing import Ending
from tests.explore.world import Decision, Driver, Event, Handoff, Message, World


@dataclass(frozen=True, slots=True)
class Move:
    """One thing that happens, in a sentence. `fault`: it costs budget, and nobody may rely on it."""

    says: str
    world: World
    fault: bool = False


def decides(world: World, op: int, decision: Decision) -> World:
    return replace(world, driver=Driver(op, decision=decision))


def waits(world: World, message: Message) -> bool:
    """Whether the driver waits for the answer to this very message."""
    driver = world.driver
    return driver is not None and driver.asked is message.ask and driver.op == message.op and message.call == world.call


def gives(world: World, message: Message, decision: Decision) -> World:
    return decides(world, message.op, decision) if waits(world, message) else world


def spent(world: World, what: str) -> World:
    return replace(world, budget=replace(world.budget, **{what: getattr(world.budget, what) - 1}))


def cuts(world: World, op: int) -> World:
    job = world.job
    return world if job is None or job.op != op else replace(world, job=replace(job, tunnel=False))


def source_ends(world: World, ending: Ending, *, died: bool) -> World:
    record = world.record if world.record is not Ending.UNTOLD else ending
    after = replace(world, process=None, record=record, died=world.died or died)
    return tells(after, Event.ENDED)


def tells(world: World, event: Event) -> World:
    source = world.source
    return world if source is None else replace(world, source=replace(source, events=(*source.events, event)))


def keeps(world: World, handoff: Handoff) -> World:
    return replace(world, handoffs=tuple(handoff if other.op == handoff.op else other for other in world.handoffs))


def arriving_lost(world: World, op: int) -> World:
    return replace(world, arriving=None) if world.arriving is not None and world.arriving.op == op else world
