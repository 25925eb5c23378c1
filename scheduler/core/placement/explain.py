"""Why a VM found no node, for the person who asked: one sentence, one line per node and rule, and what would have been accepted.

Everything is computed from the NoFit, so it is true of the very view that was decided on. The largest memory is found by asking the cost formula
itself, never by a second formula.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from hostler.errors import NoCapacity, Reason, Violation
from hostler.model.cost import charge
from hostler.model.quantities import memory_key
from scheduler.core.placement.place import TOLD_MOST, NoFit
from scheduler.core.placement.reject import Rule
from scheduler.core.placement.request import PlacementRequest

NODES_IN_SENTENCE = 5
"""More nodes than this are counted by rule: it stays a sentence in a cluster of thousands."""
VIOLATIONS_MAX = TOLD_MOST
MEMORY_MIB_MIN = 16
"""The smallest guest that the API accepts; nothing below it is proposed."""


@dataclass(frozen=True, slots=True)
class NodeViolation:
    """One node and one rule that refused it; `sentence` is complete."""

    node_id: str
    rule: Rule
    sentence: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`sentence` says why not. `fix` says what would be accepted, empty when nothing simple would.

    largest_memory_mib: the very largest that would have been accepted with all else equal, 0 when less memory is no help; on `roomiest_node_id`.
    uncordon: nodes on which it would fit were they not cordoned. `violations`: at most VIOLATIONS_MAX.
    """

    sentence: str
    fix: str
    violations: tuple[NodeViolation, ...]
    largest_memory_mib: int = 0
    roomiest_node_id: str = ""
    uncordon: tuple[str, ...] = ()


def explain(request: PlacementRequest, no_fit: NoFit) -> Explanation:
    """What to tell the caller."""
    memory_mib, roomiest = (0, "") if no_fit.pools else _largest_memory(request, no_fit)
    uncordon = () if no_fit.pools else no_fit.cordoned
    return Explanation(
        sentence=_sentence(request, no_fit),
        fix=_fix(memory_mib, roomiest, uncordon),
        violations=tuple(_violations(request, no_fit))[:VIOLATIONS_MAX],
        largest_memory_mib=memory_mib,
        roomiest_node_id=roomiest,
        uncordon=uncordon,
    )


def no_capacity(request: PlacementRequest, no_fit: NoFit) -> NoCapacity:
    """The same as an error of the taxonomy: POOL_CAPACITY_EXCEEDED when only a shared pool stands in the way, else NO_FEASIBLE_NODE."""
    told = explain(request, no_fit)
    pool_alone = bool(no_fit.pools) and no_fit.able_count > 0
    return NoCapacity(
        Reason.POOL_CAPACITY_EXCEEDED if pool_alone else Reason.NO_FEASIBLE_NODE,
        told.sentence,
        told.fix,
        violations=tuple(Violation(f"nodes/{one.node_id}", one.sentence) for one in told.violations),
        metadata={"largest_memory_mib": str(told.largest_memory_mib)} if told.largest_memory_mib else {},
    )


def _sentence(request: PlacementRequest, no_fit: NoFit) -> str:
    clauses = [pool.detail for pool in no_fit.pools]
    if request.only_node_id:
        return f"{request.only_node_id} cannot take {request.vm_id}: {'; '.join(clauses + _named_node(request, no_fit))}."
    if not no_fit.node_count:
        return f"No node can take {request.vm_id}: none is registered."
    nodes = "1 node" if no_fit.node_count == 1 else f"{no_fit.node_count} nodes"
    if no_fit.able_count:
        return f"{no_fit.able_count} of {nodes} could take {request.vm_id}, but: {'; '.join(clauses)}."
    return f"0 of {nodes} can take {request.vm_id}: {'; '.join(clauses + list(_nodes(no_fit)))}."


def _named_node(request: PlacementRequest, no_fit: NoFit) -> list[str]:
    if no_fit.refused.get(Rule.NODE_NAMED, 0) == no_fit.node_count:
        return ["no node of that name is registered"]
    return [refusal.detail for refusal in no_fit.told if refusal.node_id == request.only_node_id]


def _nodes(no_fit: NoFit) -> Iterator[str]:
    shown = no_fit.told[:NODES_IN_SENTENCE]
    yield from (f"{refusal.node_id}: {refusal.detail}" for refusal in shown)
    if rest := no_fit.node_count - len(shown):
        counts = Counter(no_fit.first_refused)
        counts.subtract(refusal.rejects[0].rule for refusal in shown)
        yield f"{rest} more: {', '.join(f'{counts[rule]} {rule}' for rule in Rule if counts[rule])}"


def _violations(request: PlacementRequest, no_fit: NoFit) -> Iterator[NodeViolation]:
    for refusal in no_fit.told:
        for reject in refusal.rejects:
            yield NodeViolation(refusal.node_id, reject.rule, f"{refusal.node_id} cannot take {request.vm_id}: {reject.detail}.")


def _fix(memory_mib: int, roomiest: str, uncordon: tuple[str, ...]) -> str:
    ways: list[str] = []
    if memory_mib:
        ways.append(f"With memory_mib of {memory_mib} or less it would fit on {roomiest}")
    if uncordon:
        more = f" (and {len(uncordon) - 1} more)" if len(uncordon) > 1 else ""
        ways.append(f"If {uncordon[0]}{more} were not cordoned it would fit there")
    return " ".join(f"{way}." for way in ways)


def _largest_memory(request: PlacementRequest, no_fit: NoFit) -> tuple[int, str]:
    """The largest memory_mib that a node would have accepted, and that node; of nodes that have too little memory and no other fault."""
    if request.stored_charge or no_fit.roomiest is None:
        return 0, ""  # the size of a VM that exists is not the caller's to choose here
    node_id, free_mib = no_fit.roomiest
    memory_mib = _largest_within(request.vcpus, free_mib)
    return (memory_mib, node_id) if memory_mib >= MEMORY_MIB_MIN else (0, "")


def _largest_within(vcpus: int, budget_mib: int) -> int:
    """Largest guest memory whose cost is within the budget, 0 if none: by halving, since cost grows with memory and is never below it."""
    low, high = 0, budget_mib
    while low < high:
        middle = (low + high + 1) // 2
        fits = charge(vcpus, 0, middle)[memory_key(0)] <= budget_mib
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
