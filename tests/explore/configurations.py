"""What is searched: slices of everything that may go wrong, each small enough to be exhausted."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.explore.rules import Rules
from tests.explore.world import Budget


@dataclass(frozen=True, slots=True)
class Configuration:
    """One search. `finds`: how the violation that it must find begins; empty: it must find none, and every state can end well."""

    rules: Rules
    budget: Budget
    finds: str = ""
    why: str = ""
    bound: int = 0
    """States after which the search is ended, nearest first; 0: it is exhausted."""


_LOCKLESS = Rules(lockless=True)

HOLDS: Mapping[str, Configuration] = {
    "no-fault": Configuration(Rules(), Budget()),
    "agent-killed": Configuration(Rules(), Budget(agents=1)),
    "scheduler-killed": Configuration(Rules(), Budget(schedulers=1)),
    "message-late": Configuration(Rules(), Budget(messages=1)),
    "libvirt-fails": Configuration(Rules(), Budget(libvirt=1)),
    "process-dies": Configuration(Rules(), Budget(deaths=1)),
    "cancelled": Configuration(Rules(), Budget(cancels=1)),
    "cancelled-again": Configuration(Rules(), Budget(cancels=1, moves=(1, 1))),
    "scheduler-killed-cancelled": Configuration(Rules(), Budget(schedulers=1, cancels=1)),
    "message-late-cancelled": Configuration(Rules(), Budget(messages=1, cancels=1)),
    "libvirt-fails-cancelled": Configuration(Rules(), Budget(libvirt=1, cancels=1)),
    "libvirt-fails-agent-killed": Configuration(Rules(), Budget(libvirt=1, agents=1)),
    "lockless-agent-killed": Configuration(_LOCKLESS, Budget(agents=1)),
    "lockless-scheduler-killed": Configuration(_LOCKLESS, Budget(schedulers=1)),
    "lockless-message-late": Configuration(_LOCKLESS, Budget(messages=1)),
    "lockless-libvirt-fails": Configuration(_LOCKLESS, Budget(libvirt=1)),
    "lockless-process-dies": Configuration(_LOCKLESS, Budget(deaths=1)),
    "power-lost-for-good": Configuration(Rules(), Budget(power=1, fences=1, starts=1, stays_off=1)),
    "wrong-fence-start-in-hand": Configuration(Rules(locks_bar=True), Budget(agents=1, wrong_fences=1, starts=2, moves=(), off=True)),
    "power-lost-agent-killed": Configuration(Rules(), Budget(power=1, fences=1, agents=1, starts=1, moves=(), off=True)),
    "power-lost-message-late": Configuration(Rules(), Budget(power=1, fences=1, messages=1, starts=1, moves=(), off=True)),
    "power-lost-twice": Configuration(Rules(), Budget(power=2, fences=1, starts=2, moves=(), off=True)),
    "lockless-cancelled-again": Configuration(_LOCKLESS, Budget(cancels=1, moves=(1, 1))),
    "power-lost": Configuration(Rules(), Budget(power=1, fences=1, starts=1)),
    "there-and-back": Configuration(Rules(), Budget(moves=(1, 0))),
    "link-cut": Configuration(Rules(), Budget(cuts=1)),
    "lockless-link-cut": Configuration(_LOCKLESS, Budget(cuts=1)),
    "link-cut-cancelled": Configuration(Rules(), Budget(cuts=1, cancels=1)),
    "old-agent-wakes": Configuration(Rules(), Budget(zombies=1)),
    "old-replica-sends-late": Configuration(Rules(), Budget(sleepers=1)),
    "old-replica-sends-late-cancelled": Configuration(Rules(), Budget(sleepers=1, cancels=1)),
    "old-replica-sends-late-power-lost": Configuration(Rules(), Budget(sleepers=1, power=1, fences=1, starts=2, moves=(), off=True)),
    "cold-move-old-replica-sends-late-power-lost": Configuration(Rules(), Budget(sleepers=1, power=1, fences=1, starts=1, off=True)),
    "third-node": Configuration(Rules(), Budget(nodes=3, moves=(1, 2))),
    "started-and-dies": Configuration(Rules(), Budget(off=True, moves=(), deaths=1, messages=2, agents=1, starts=2)),
    "cold-move": Configuration(Rules(), Budget(off=True, agents=1, cancels=1, starts=2)),
    "cold-move-late": Configuration(Rules(), Budget(off=True, messages=1, cancels=1, starts=1)),
    "cold-move-link-cut": Configuration(Rules(), Budget(off=True, cuts=1, cancels=1, starts=1)),
    "cold-move-power-lost": Configuration(Rules(), Budget(off=True, power=1, fences=1, starts=1)),
    "cold-move-to-a-third-node": Configuration(Rules(), Budget(off=True, nodes=3, moves=(1, 2), agents=1, cancels=1, starts=1)),
}

_BOUND = 1_500_000
"""Of slices that are, or may be, too large to be exhausted: some two GiB, and three minutes of a processor."""

LARGE: Mapping[str, Configuration] = {
    "agents-killed-twice": Configuration(Rules(), Budget(agents=2)),
    "live-move-old-replica-sends-late-power-lost": Configuration(Rules(), Budget(sleepers=1, power=1, fences=1)),
    "wrong-fence": Configuration(Rules(locks_bar=True), Budget(agents=1, wrong_fences=1, starts=1), bound=_BOUND),
    "third-node-cancelled": Configuration(Rules(), Budget(nodes=3, moves=(1, 2), cancels=1), bound=_BOUND),
    "there-and-back-agent-killed": Configuration(Rules(), Budget(moves=(1, 0), agents=1), bound=_BOUND),
    "link-cut-agent-killed": Configuration(Rules(), Budget(cuts=1, agents=1), bound=_BOUND),
    "two-killed-and-a-link-cut": Configuration(Rules(), Budget(cuts=1, agents=1, schedulers=1), bound=_BOUND),
    "three-nodes-two-killed-and-a-link-cut": Configuration(
        Rules(), Budget(nodes=3, moves=(1, 2), cuts=1, agents=1, schedulers=1), bound=_BOUND
    ),
}
"""Exhausted in minutes rather than seconds: searched with ALL=1. Those with a bound are not exhausted, and say so."""
