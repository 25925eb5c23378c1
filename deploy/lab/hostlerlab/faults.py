"""Faults put into a running lab: lost packets, frozen and killed processes. Each can be healed and leaves nothing behind.

Decision: packets are dropped by an nft table of their own per fault inside one host's namespace, with a counter, so a
test can show that the fault has bitten; healing deletes the table. The rules are stateless: established connections
go silent like new ones, nobody gets a reset, which is what a cut cable looks like. Loopback is never touched.
"""

import itertools
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from hostlerlab.processes import Process
from hostlerlab.shell import wait_for
from hostlerlab.space import Space

SIGNAL_TIMEOUT_S = 10.0
FULL = 1000  # chances are counted in thousandths
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Drop:
    """Which packets of a host get lost. `direction` is the host's view; a field left None matches everything.

    `peer` is an IPv4 address; the ports need a `protocol`; `chance_milli` of 1000 packets are dropped.
    """

    direction: Literal["in", "out", "both"] = "both"
    peer: str | None = None
    local_port: int | None = None
    remote_port: int | None = None
    protocol: Literal["tcp", "udp"] = "tcp"
    chance_milli: int = FULL

    def rules(self) -> dict[str, str]:
        """nft rules by hook (`input`, `output`)."""
        hooks = {"in": ("input",), "out": ("output",), "both": ("input", "output")}[self.direction]
        return {hook: self._rule(hook) for hook in hooks}

    def _rule(self, hook: str) -> str:
        inward = hook == "input"
        parts = [f'{"iifname" if inward else "oifname"} != "lo"']
        if self.peer is not None:
            parts.append(f"ip {'saddr' if inward else 'daddr'} {self.peer}")
        if self.local_port is not None:
            parts.append(f"{self.protocol} {'dport' if inward else 'sport'} {self.local_port}")
        if self.remote_port is not None:
            parts.append(f"{self.protocol} {'sport' if inward else 'dport'} {self.remote_port}")
        if self.chance_milli < FULL:
            parts.append(f"numgen random mod {FULL} < {self.chance_milli}")
        return " ".join([*parts, "counter name dropped drop"])


class PacketLoss:
    """A `Drop` at work in one host; a context manager that heals at the end."""

    def __init__(self, space: Space, drop: Drop) -> None:
        self._space = space
        # Also unique among test processes that share a lab.
        self._table = f"hostler_fault_{os.getpid()}_{next(_numbers)}"
        self.drop = drop

    def inject(self) -> None:
        """Start losing packets; in force when this returns."""
        chains = "\n".join(
            f" chain {hook} {{ type filter hook {hook} priority -300; policy accept; {rule}; }}" for hook, rule in self.drop.rules().items()
        )
        self._space.run(["nft", "-f", "-"], stdin=f"table inet {self._table} {{\n counter dropped {{}}\n{chains}\n}}\n")

    def packets(self) -> int:
        """Packets lost so far."""
        listed = json.loads(self._space.run(["nft", "-j", "list", "counter", "inet", self._table, "dropped"]).stdout)
        return next(int(item["counter"]["packets"]) for item in listed["nftables"] if "counter" in item)

    def heal(self) -> None:
        """Stop losing packets."""
        self._space.run(["nft", "delete", "table", "inet", self._table])

    def __enter__(self) -> "PacketLoss":
        self.inject()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()


def heal_all(space: Space) -> int:
    """Delete the fault tables that a killed test left in a host; how many there were."""
    listed = json.loads(space.run(["nft", "-j", "list", "tables"]).stdout)["nftables"]
    names = [item["table"]["name"] for item in listed if "table" in item and item["table"]["name"].startswith("hostler_fault_")]
    for name in names:
        space.run(["nft", "delete", "table", "inet", name])
    return len(names)


def freeze(process: Process) -> None:
    """SIGSTOP; returns when no thread of the process runs any more. Raises `ProcessLookupError` when it is gone."""
    _send(process, signal.SIGSTOP)
    wait_for(f"pid {process.pid} to stop", process.stopped, SIGNAL_TIMEOUT_S)


def thaw(process: Process) -> None:
    """SIGCONT."""
    _send(process, signal.SIGCONT)


@contextmanager
def frozen(process: Process) -> Iterator[None]:
    """SIGSTOP for the length of the block. A process killed meanwhile is left in peace."""
    freeze(process)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


def kill(process: Process) -> None:
    """SIGKILL; returns when it is dead."""
    _send(process, signal.SIGKILL)
    if not process.wait(SIGNAL_TIMEOUT_S):
        raise TimeoutError(f"pid {process.pid} survived SIGKILL for {SIGNAL_TIMEOUT_S:g} s (state {process.state()})")


def _send(process: Process, number: signal.Signals) -> None:
    if not process.signal(number):
        raise ProcessLookupError(f"pid {process.pid} of this life is gone")
