"""What goes wrong by itself: processes that are killed, stopped, or wake too late; links that break and heal."""

from collections.abc import Iterator

from msgspec.structs import replace

from hostler.model.copy import Stage
from nodeagent.core.outgoing import Ending
from tests.explore.changes import IDLE, Move, asks_again, cuts, ended, given_up, placed, spent, waits
from tests.explore.destinations import DestinationMoves, unasked
from tests.explore.hosts import HostMoves
from tests.explore.sources import SourceMoves
from tests.explore.world import MIGRATIONS, NODES, SCHEDULERS, Ask, At, Has, Host, Link, Memory, Message, Step, World, Zombie

TRANSACTIONS = (Ask.COMMIT_WRITE, Ask.STEP_WRITE)


def faults(world: World) -> Iterator[Move]:
    """Each costs budget."""
    budget = world.budget
    if budget.agents or budget.zombies:
        for node, host in enumerate(world.hosts):
            if host.up and budget.agents:
                yield Move(f"{NODES[node]}'s agent is killed", spent(agent_lost(world, node), "agents"), fault=True)
            if host.up and budget.zombies:
                yield from _stopped(world, node, host)
    if world.driver is not None and (budget.schedulers or budget.sleepers):
        yield from _replicas(world)
    if budget.messages:
        yield from _untrue(world)
    if budget.deaths:
        yield from _deaths(world)
    if budget.sleepers == 0 and world.asleep:
        for message in world.asleep:
            awake = replace(world, asleep=world.asleep - {message}, net=world.net | {message})
            yield Move(f"the stopped replica wakes, and sends {message.ask}", awake)


def _replicas(world: World) -> Iterator[Move]:
    driver, net = world.driver, world.net
    if driver is None:
        return
    if world.budget.schedulers:
        if driver.seen is not None and driver.decision is not None:
            net = net | {Message(Ask.STEP_WRITE, driver.op, decision=driver.decision, seen=driver.seen, proofs=driver.proofs)}
        dead = replace(world, driver=None, net=net)
        yield Move("the leading scheduler is killed; what it has sent is on its way", spent(dead, "schedulers"), fault=True)
    if world.budget.sleepers and driver.asked is not None:
        unsent = [message for message in world.net if waits(world, message)]
        if unsent:
            without = replace(world, net=world.net - {unsent[0]})
            asleep = replace(given_up(without), asleep=world.asleep | {replace(unsent[0], late=1)})
            says = f"the leading replica is stopped, {driver.asked} not sent yet; another drives"
            yield Move(says, spent(asleep, "sleepers"), fault=True)


def _untrue(world: World) -> Iterator[Move]:
    for node, host in enumerate(world.hosts):
        for op, stage in host.arrivals:
            untrue = Message(Ask.NOTE_COMMITTED, op, node)
            if stage is Stage.PREPARED and untrue not in world.net:
                said = replace(world, net=world.net | {untrue})
                yield Move(f"{NODES[node]} is told that migration {op + 1} was committed", spent(said, "messages"), fault=True)


def _deaths(world: World) -> Iterator[Move]:
    for node, host in enumerate(world.hosts):
        if host.domain is not None:
            memory_lost = host.domain.has in (Has.RUNNING, Has.SWITCHED)
            dead = replace(placed(world, node, ended(host, Ending.OTHERWISE)), died=world.died or memory_lost)
            yield Move(f"the VM's process on {NODES[node]} dies by itself", spent(dead, "deaths"), fault=True)


def agent_lost(world: World, node: int) -> World:
    """What is in its process is lost with it, and its tunnels; the driver that waits for it asks again."""
    host = world.hosts[node]
    for op in MIGRATIONS:
        if any(other.job is not None and other.job.op == op and node in (here, other.job.to) for here, other in enumerate(world.hosts)):
            world = cuts(world, op)
    host = world.hosts[node]
    for op in MIGRATIONS:
        world = unasked(world, node, op)
    laying = None if host.laying is None else Step.AGAIN
    gone = replace(host, up=False, memory=Memory(), task=None, starting=None, laying=laying, listening=frozenset())
    after = placed(world, node, gone)
    for held in (host.task, host.starting):
        if held is not None:
            after = asks_again(after, held.message)
    return after


# ---- an agent's old process beside a new one


def _stopped(world: World, node: int, host: Host) -> Iterator[Move]:
    """Its process is stopped by a signal after it has looked and before it acts (what it would look at anew tells it the truth), and taken for
    dead."""
    looked = any(drive.at in (At.LOOKED, At.GONE) or host.memory.switched for drive in host.memory.drives)
    if not looked and not host.busy:
        return
    lost = agent_lost(world, node)
    zombie = Zombie(host.memory, host.task, host.starting, host.handoffs)
    after = placed(lost, node, replace(lost.hosts[node], zombie=zombie))
    yield Move(f"{NODES[node]}'s agent is stopped by a signal, and taken for dead", spent(after, "zombies"), fault=True)


def zombie_moves(
    world: World, node: int, host: Host, zombie: Zombie, sources: SourceMoves, destinations: DestinationMoves, hosts: HostMoves
) -> Iterator[Move]:
    """It wakes, does what it was about to do to the hypervisor or sends what it was about to send, and is gone. Or it is just gone."""
    buried = placed(world, node, replace(host, zombie=None))
    yield Move(f"{NODES[node]}'s old agent is killed at last", buried)
    old = replace(host, up=True, memory=zombie.memory, task=zombie.task, starting=zombie.starting, handoffs=zombie.handoffs, zombie=None)
    then = replace(placed(world, node, old), driver=IDLE)
    for drive_moves in (sources.drives(then, node, old), destinations(then, node, old), hosts.starts(then, node, old)):
        for move in drive_moves:
            did = move.world.hosts[node]
            after = replace(host, zombie=None, domain=did.domain, job=did.job, record=did.record)
            acted = placed(replace(move.world, driver=world.driver, budget=world.budget, store=world.store), node, after)
            if acted != buried and not move.fault:
                yield Move(f"{NODES[node]}'s old agent wakes, acts once and is gone: {move.says}", acted)


# ---- links


def links(world: World) -> Iterator[Move]:
    """A link breaks, with what is on its way there lost or late; it heals."""
    for link in world.cut:
        yield Move(f"the link {_named(link)} is whole again", replace(world, cut=world.cut - {link}))
    if not world.budget.cuts:
        return
    nodes = range(len(world.hosts))
    for link in [(SCHEDULERS, node) for node in nodes] + [(one, other) for one in nodes for other in nodes if one < other]:
        if link not in world.cut:
            broken = spent(_broken(world, link), "cuts")
            yield Move(f"the link {_named(link)} breaks", broken, fault=True)
            lost = frozenset([message for message in broken.net if not _goes_through(world, message, link)])
            if lost != broken.net:
                yield Move(f"the link {_named(link)} breaks, and what was on its way is lost", replace(broken, net=lost), fault=True)


def _broken(world: World, link: Link) -> World:
    """Its connections break: a tunnel through it, and the call that the driver waits for; what was asked is asked again by whoever needs it."""
    after = replace(world, cut=world.cut | {link})
    if after.driver is not None and after.driver.asked is not None and link == (SCHEDULERS, after.driver.node):
        after = given_up(after)
    for op in MIGRATIONS:
        if any(host.job is not None and host.job.op == op and {here, host.job.to} == set(link) for here, host in enumerate(world.hosts)):
            after = cuts(after, op)
    return after


def _goes_through(world: World, message: Message, link: Link) -> bool:
    if message.ask in TRANSACTIONS:
        return False
    if message.ask is Ask.NOTE_COMMITTED:
        return set(world.store.ends(message.op)) == set(link)
    return link == (SCHEDULERS, message.node)


def _named(link: Link) -> str:
    one, other = link
    return f"between {'the schedulers' if one == SCHEDULERS else NODES[one]} and {NODES[other]}"
