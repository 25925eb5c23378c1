"""As much of numpy as the scan uses, on lists: what the scan decides can be tested where numpy is not installed."""

import operator
from collections.abc import Callable, Iterable, Iterator

__version__ = "0"
float32 = float


class Array:
    """One dimension, element by element."""

    def __init__(self, values: Iterable[float]) -> None:
        self.values = list(values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def __getitem__(self, at: int) -> float:
        return self.values[at]

    def __setitem__(self, at: int, value: float) -> None:
        self.values[at] = value

    def __radd__(self, other: float) -> "Array":
        return Array(other + value for value in self)

    def __add__(self, other: "Array") -> "Array":
        return both(self, other, operator.add)

    def __rsub__(self, other: float) -> "Array":
        return Array(other - value for value in self)

    def __truediv__(self, other: "Array") -> "Array":
        return both(self, other, operator.truediv)

    def __ge__(self, other: float) -> "Array":
        return Array(value >= other for value in self)

    def __and__(self, other: "Array") -> "Array":
        return both(self, other, lambda a, b: bool(a and b))

    def copy(self) -> "Array":
        return Array(self.values)

    def argmax(self) -> int:
        return self.values.index(max(self.values))


def both(one: Array, other: Array, step: Callable[[float, float], float]) -> Array:
    return Array(step(a, b) for a, b in zip(one, other, strict=True))


def array(values: Iterable[float], _numbers: object) -> Array:
    return Array(values)


def empty(count: int, _numbers: object) -> Array:
    return Array([0.0] * count)


def where(chosen: Array, values: Array, otherwise: float) -> Array:
    return Array(value if yes else otherwise for yes, value in zip(chosen, values, strict=True))


def greater_equal(values: Array, limit: float, out: Array) -> None:
    out.values = (values >= limit).values


def logical_and(values: Array, others: Array, out: Array) -> None:
    out.values = (values & others).values


def multiply(values: Array, others: Array, out: Array) -> None:
    out.values = both(values, others, operator.mul).values
