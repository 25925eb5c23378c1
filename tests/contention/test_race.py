"""Promise 1 under contention: a thousand programs want a hundred slots at once, and the replicas that decide are killed while they do."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pytest

from hostler.api.type.v1.operation_pb2 import Operation
from hostler.errors import HostlerError
from tests.contention.checker import Breach, Record, Records, Verdict, at_rest, judge
from tests.contention.clients import Answer
from tests.contention.conftest import CREATES, Stage
from tests.contention.history import read
from tests.contention.hosts import OFFERS, SIZES, SLOTS, SLOTS_PER_NODE, Hosts, wanted
from tests.contention.kills import Blow, Hit, none, schedule, strike
from tests.contract.store.subject import metric

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(600)]

RACE_S = 120.0
"""It takes less than twenty seconds on two cores that have other things to do."""
TRANSACTIONS = 'grpc_server_handled_total{grpc_code="OK",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"}'
"""Those that changed nothing were refused by a guard: somebody else was first."""


@pytest.mark.parametrize("blows", [pytest.param(schedule, id="killed"), pytest.param(none, id="all-live", marks=pytest.mark.slow)])
async def test_a_thousand_creates_fill_a_hundred_slots_exactly(
    stage: Stage, seed: int, blows: Callable[[int], Sequence[Blow]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two deciders spend one slot; a killed one takes a slot, a VM or a file with it; a repeat makes a second VM; a slot stays empty; a refusal is
    not for want of room."""
    began_s = time.monotonic()
    hits: list[Hit] = []
    late = await _raced(stage, blows(seed), hits)
    took_s = time.monotonic() - began_s
    verdict = judge(await asyncio.to_thread(read, stage.etcd.endpoints[0]), OFFERS)
    with capsys.disabled():
        print(f"\n{_figures(stage, seed, hits, verdict, took_s)}")
    # What the store went through comes first: whatever else is wrong may follow from it.
    assert _told(verdict.breaches) == []
    assert late == []
    assert_kills_hit(stage, hits, len(blows(seed)))
    answers = stage.tally.answers
    assert_answers(answers)
    assert _told(at_rest(verdict.last)) == []
    made = {answer.vm_id: answer.operation.vm.uid for answer in answers if answer.operation is not None}
    assert_store_has_exactly(made, verdict.last)
    assert_hosts_have_exactly(set(made.values()), verdict.last, stage.hosts)


async def _raced(stage: Stage, blows: Sequence[Blow], hits: list[Hit]) -> list[str]:
    """Everybody asks, the blows fall; who had no final answer within RACE_S. Replicas that were killed serve again."""
    async with asyncio.TaskGroup() as group:
        striking = group.create_task(strike(blows, stage.replicas, stage.tally, hits), name="kills")
        creates = [
            group.create_task(stage.callers[number % len(stage.callers)].create(f"vm-{number}", wanted(number)), name=f"create {number}")
            for number in range(CREATES)
        ]
        _, late = await asyncio.wait([striking, *creates], timeout=RACE_S)
        for task in late:
            task.cancel()
    return sorted(task.get_name() for task in late)


def _told(breaches: Sequence[Breach]) -> list[str]:
    """The first breach of each rule: one is enough to begin with, and a broken ledger brings thousands."""
    counts, first = Counter(breach.rule for breach in breaches), {breach.rule: breach for breach in reversed(breaches)}
    return [f"{breach} ({counts[rule]} of this rule)" for rule, breach in first.items()]


def assert_kills_hit(stage: Stage, hits: list[Hit], wanted: int) -> None:
    """Every blow fell while creates were under way, some on a leader, and nothing else ended a replica."""
    assert len(hits) == wanted
    assert all(hit.creates for hit in hits)
    assert any(hit.killed.led for hit in hits) or not wanted
    assert stage.replicas.endings() == ["signal (SIGKILL)"] * wanted


def assert_answers(answers: Iterable[Answer]) -> None:
    """Exactly so many succeeded as there are slots; the others were refused, each because no node had room."""
    ended = Counter(Operation.State.Name(answer.operation.state) for answer in answers if answer.operation is not None)
    assert ended == {"SUCCEEDED": SLOTS}
    refusals = [answer.refusal for answer in answers if answer.refusal is not None]
    assert Counter(refusal.reason.value for refusal in refusals) == {"NO_FEASIBLE_NODE": CREATES - SLOTS}
    full = {f"nodes/{node_id}" for node_id in SIZES}
    assert [told for refusal in refusals if (told := _short(refusal)) != full] == []


def _short(refusal: HostlerError) -> set[str]:
    """The nodes that had too little of something, whatever else is said of them: after so many deaths of replicas some may count as silent too."""
    return {violation.field for violation in refusal.violations if " short by " in violation.description}


def assert_store_has_exactly(made: dict[str, str], last: Records) -> None:
    """The VMs that were answered for, and each node full."""
    assert {vm_id: vm["uid"] for vm_id, vm in last.of("vm").items()} == made
    assert {vm["observed"] for vm in last.of("vm").values()} == {"RUNNING"}
    assert Counter(claim["node_id"] for claim in last.of("claim").values()) == dict.fromkeys(SIZES, SLOTS_PER_NODE)
    assert Counter(_of_creation(last)) == {"SUCCEEDED": SLOTS}
    assert {node_id: ledger["allocatable"] for node_id, ledger in last.of("ledger").items()} == OFFERS


def _of_creation(last: Records) -> Iterable[str]:
    return (operation["state"] for operation in last.of("op").values() if operation["verb"] == "CreateVM")


def assert_hosts_have_exactly(uids: set[str], last: Records, hosts: Hosts) -> None:
    """Asked of the hosts themselves: domains, processes, agents' definitions and files, each where the store says."""
    where = {vm["uid"]: vm["owner"]["node_id"] for vm in last.of("vm").values()}
    assert {uid: node_id for node_id, host in hosts.world.hosts.items() for uid in host.domains} == where
    assert sorted((process.vm_uid, process.node_id) for process in hosts.world.processes.values()) == sorted(where.items())
    assert all(hosts.world.guest(uid).executing == (where[uid],) for uid in uids)
    defined = [(file.name, node_id) for node_id in SIZES for file in (hosts.directory / "state" / node_id / "vms").glob("[!.]*")]
    assert sorted(uid for uid, _ in defined) == sorted(where)
    assert_files(last.of("volume").values(), hosts)
    hosts.world.assert_one_writer()


def assert_files(volumes: Iterable[Record], hosts: Hosts) -> None:
    """Each volume has one file, in its pool, and there are no others."""
    found = Counter(
        file.partition("/")[2].partition(".")[0]
        for pool in {id(pool): pool for host in hosts.world.hosts.values() for pool in host.pools.values()}.values()
        for file in pool.files
        if file.startswith("volumes/")
    )
    assert found == Counter(volume["uid"] for volume in volumes)


def _figures(stage: Stage, seed: int, hits: list[Hit], verdict: Verdict, took_s: float) -> str:
    tally = stage.tally
    blows = ", ".join(f"{hit.killed.replica}{'*' if hit.killed.led else ''} at {hit.accepted} ({hit.creates})" for hit in hits)
    again = ", ".join(f"{number} {kind} {reason}" for (kind, reason), number in sorted(tally.again.items()))
    return (
        f"seed {seed}: {CREATES} creates in {took_s:.1f} s, {CREATES / took_s:.0f}/s, at most {tally.most_flying} calls at once\n"
        f"  accepted {tally.accepted}, of which {tally.found} were found by a repeat; refused {tally.refused}; made again: {again or 'none'}\n"
        f"  {len(hits)} kills (* led; creates it had in hand): {blows}\n"
        f"  {verdict.revisions} revisions looked at, of {metric(stage.etcd, TRANSACTIONS)} transactions asked; {len(verdict.breaches)} breaches"
    )
