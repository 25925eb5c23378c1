"""Which nodes can take a VM, by the policy's rules; and of the others how many each rule refused, and in words why.

The rules are asked about all nodes at once. A node is looked at by itself only to be told about.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.placement.fleet import Fleet, Mask
from scheduler.core.placement.policy import Filter, Policy
from scheduler.core.placement.reject import Refusal, Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


@dataclass(frozen=True, slots=True)
class Sifted:
    """Where the nodes are that can take the VM, and how many; `refused`: how many each rule refused, of those that were asked about it.

    `answers`: where each rule that had something to ask did not refuse. True until the nodes change.
    """

    able: Mask
    able_count: int
    refused: Mapping[Rule, int]
    answers: Mapping[Rule, Mask]


def sift(nodes: Fleet, request: PlacementRequest, policy: Policy) -> Sifted:
    """Ask every rule about every node."""
    known = nodes.known(policy.about(request), lambda: _asked(policy.of_facts, nodes, request, nodes.present))
    final = _asked(policy.final, nodes, request, nodes.present)
    if final.refused:
        known = _among(known, final)
    more = _asked(policy.of_more, nodes, request, final.able)
    refused, answers = {**final.refused, **known.refused, **more.refused}, {**final.answers, **known.answers, **more.answers}
    able = known.able & more.able if more.refused else known.able
    return Sifted(able, int(np.count_nonzero(able)), refused, answers)


def _asked(rows: tuple[Filter, ...], nodes: Fleet, request: PlacementRequest, asked: Mask) -> Sifted:
    """Some of the rules, about the nodes that are `asked`; a final one is asked about those alone that the ones before it let pass."""
    able, refused, answers = asked, dict[Rule, int](), dict[Rule, Mask]()
    count = -1
    for row in rows:
        mask = row.passing(nodes, request)
        if mask is None:
            continue
        if count < 0:
            count = len(nodes) if asked is nodes.present else int(np.count_nonzero(asked))
        answers[row.rule] = mask = asked & mask
        if no := count - int(np.count_nonzero(mask)):
            refused[row.rule] = no
            able = able & mask
            if row.final:
                asked, count = mask, count - no
    return Sifted(able, 0, refused, answers)


def _among(known: Sifted, final: Sifted) -> Sifted:
    """What is known of all nodes, of those alone that no final rule refused."""
    count = int(np.count_nonzero(final.able))
    answers = {rule: mask & final.able for rule, mask in known.answers.items()}
    counts = {rule: count - int(np.count_nonzero(mask)) for rule, mask in answers.items()}
    return Sifted(known.able & final.able, 0, {rule: no for rule, no in counts.items() if no}, answers)


def refusals(nodes: Fleet, request: PlacementRequest, policy: Policy) -> Iterator[Refusal]:
    """Every node that cannot take the VM with every rule that says so, in order of their ids: as slow as there are nodes."""
    for view in nodes:
        if rejects := rejects_of(view, request, policy):
            yield Refusal(view.node.node_id, rejects)


def rejects_of(view: NodeView, request: PlacementRequest, policy: Policy) -> tuple[Reject, ...]:
    """Every rule's no to one node; empty: it can take the VM."""
    rejects: list[Reject] = []
    for row in policy.filters:
        reject = row.refuse(view, request)
        if reject is None:
            continue
        rejects.append(reject)
        if row.final:
            break
    return tuple(rejects)


def first_refused(nodes: Fleet, sifted: Sifted, policy: Policy) -> dict[Rule, int]:
    """Of how many nodes each rule was the first to refuse, in the order of the policy."""
    left, counts = nodes.present, dict[Rule, int]()
    for rule in (row.rule for row in policy.filters if row.rule in sifted.refused):
        still = left & sifted.answers[rule]
        if no := int(np.count_nonzero(left)) - int(np.count_nonzero(still)):
            counts[rule] = no
        left = still
    return counts


def refused_only_by(nodes: Fleet, sifted: Sifted, rule: Rule) -> Mask:
    """Where no other rule stands in the way."""
    only = nodes.present & ~sifted.able
    for other in sifted.refused:
        if other is not rule:
            only = only & sifted.answers[other]
    return only


def in_order(nodes: Fleet, mask: Mask) -> NDArray[np.intp]:
    """The places of a mask, in order of the nodes' ids."""
    return nodes.order[mask[nodes.order]]
