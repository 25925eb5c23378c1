"""A "no" as a value: which rule refused which node, in words, and by how much. The sentences are made where the no is; here is their form.

A detail is a clause that follows the node's name ("n1: cordoned"): lower case, no full stop, fit to be shown to any user.
"""

from dataclasses import dataclass
from enum import StrEnum

from hostler.model.quantities import Shortfall


class Rule(StrEnum):
    """Every rule that can refuse a node. Counted and shown; never renamed."""

    NODE_NAMED = "NODE_NAMED"
    """The request names another node."""
    NODE_EXCLUDED = "NODE_EXCLUDED"
    """The request says not there, and why."""
    NODE_STATE = "NODE_STATE"
    """The node takes no new VMs."""
    NODE_HEALTH = "NODE_HEALTH"
    """The node or its hypervisor does not answer."""
    LOCAL_VOLUME = "LOCAL_VOLUME"
    """A volume that the VM uses lies in another node's own pool."""
    NETWORK = "NETWORK"
    """The node lacks a network."""
    POOL = "POOL"
    """The node lacks a pool, or has another one under its name."""
    IMAGE = "IMAGE"
    """The node's pool lacks an image."""
    ACCELERATION = "ACCELERATION"
    """The node runs guests in another way than the node that the VM comes from."""
    CAPACITY = "CAPACITY"
    """The node has too little of something left."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One rule's no to one node. `shortfalls` is set where the reason is an amount."""

    node_id: str
    rule: Rule
    detail: str
    shortfalls: tuple[Shortfall, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """One node that cannot take the VM, and every rule that said so: never without one."""

    node_id: str
    rejects: tuple[Reject, ...]

    @property
    def detail(self) -> str:
        return ", ".join(reject.detail for reject in self.rejects)


@dataclass(frozen=True, slots=True)
class PoolShortfall:
    """A shared pool that has too little left: no node can help."""

    pool_id: str
    detail: str
    shortfall: Shortfall
