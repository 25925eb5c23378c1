"""A transaction as a value: what must still be so, what is written, what is removed. The engine encodes it; the store decides it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.records import Record


@dataclass(frozen=True, slots=True)
class Transaction:
    """`guards`: key -> mod revision it must still have (0: it must not exist). `puts`: key -> record. `deletes`: keys."""

    guards: Mapping[str, int] = field(default_factory=dict)
    puts: Mapping[str, Record] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()

    def and_then(self, other: "Transaction") -> "Transaction":
        """Both in one. They must not disagree on a guard, nor write one key twice."""
        for key in self.guards.keys() & other.guards.keys():
            if self.guards[key] != other.guards[key]:
                raise ValueError(f"two guards on {key}")
        if (self.puts.keys() | set(self.deletes)) & (other.puts.keys() | set(other.deletes)):
            raise ValueError("a key is written twice")
        return Transaction({**self.guards, **other.guards}, {**self.puts, **other.puts}, self.deletes + other.deletes)
