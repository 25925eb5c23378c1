"""Raw transactions, against a member in memory: fewer or smaller writes than a claim's would be a limit that nobody can reach."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import grpc
import pytest

from hostler.internal.etcd.v1 import wire_pb2 as wire
from tests.bench.placement.peers.raw_etcd import RawEtcd, Refused, target, transaction

WAIT_S = 0.002


class Member:
    """Compares and puts; stands for a channel. Keeps each request, and how many were under way at once."""

    def __init__(self, spoiled: bool = False) -> None:
        self.revisions: dict[bytes, int] = {}
        self.requests: list[wire.TxnRequest] = []
        self.most = 0
        self._under_way = 0
        self._spoiled = spoiled
        self._revision = 1

    def unary_unary(self, path: str, **_: object) -> Callable[..., Awaitable[wire.TxnResponse]]:
        assert path == "/etcdserverpb.KV/Txn"
        return self._txn

    async def _txn(self, request: wire.TxnRequest, timeout: float) -> wire.TxnResponse:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        await asyncio.sleep(WAIT_S)
        self._under_way -= 1
        self.requests.append(request)
        held = all(self.revisions.get(one.key, 0) == one.mod_revision for one in request.compare)
        if not held or self._spoiled:
            return wire.TxnResponse(succeeded=False)
        self._revision += 1
        self.revisions |= {op.request_put.key: self._revision for op in request.success}
        return wire.TxnResponse(succeeded=True, header=wire.ResponseHeader(revision=self._revision))


def raw(member: Member) -> RawEtcd:
    return RawEtcd(cast(grpc.aio.Channel, member))


def sizes(request: wire.TxnRequest) -> list[int]:
    return [len(op.request_put.value) for op in request.success]


async def test_a_claim_is_one_compare_and_its_puts() -> None:
    """A transaction without its guard, or with smaller values, is a limit that no claim reaches."""
    member = Member()
    rate = await raw(member).compare_and_put((300, 700, 50), concurrency=4, for_s=0.1)
    assert {tuple(sizes(request)) for request in member.requests} == {(300, 700, 50)}
    assert all([one.key for one in request.compare] == [request.success[0].request_put.key] for request in member.requests)
    assert {request.compare[0].target for request in member.requests} == {wire.Compare.MOD}
    assert member.most == 4
    assert rate.claims == len(rate.latencies_s) == len(member.requests) - 4, "the first version of a host is not counted"
    assert rate.claims > 4
    assert rate.puts == 3 * rate.claims
    assert min(rate.latencies_s) >= WAIT_S / 2
    assert 0.1 <= rate.took_s < 5
    assert rate.claims_per_s == pytest.approx(rate.claims / rate.took_s)


async def test_every_claim_writes_keys_of_its_own_and_the_host_again() -> None:
    """One key over and over is cheaper for etcd than a cluster that grows."""
    member = Member()
    rate = await raw(member).compare_and_put((1, 1), concurrency=2, for_s=0.05)
    hosts = {request.compare[0].key for request in member.requests}
    assert len(hosts) == 2
    assert len(member.revisions) == len(hosts) + rate.claims + len(hosts)
    assert len({len(key) for key in member.revisions}) == 2


async def test_a_batch_is_many_claims_in_one_transaction() -> None:
    """A batch that counts as one claim, or that compares but once."""
    member = Member()
    rate = await raw(member).batched((10, 20), claims=64, concurrency=2, for_s=0.05)
    assert {len(request.success) for request in member.requests} == {128}
    assert {len({one.key for one in request.compare}) for request in member.requests} == {64}
    assert set(map(tuple, map(sizes, member.requests))) == {(10, 20) * 64}
    assert rate.claims == 64 * len(rate.latencies_s)
    assert rate.puts == 2 * rate.claims


@pytest.mark.parametrize(("put_bytes", "claims"), [((1, 1), 65), ((), 1), ((1,), 0)])
async def test_what_etcd_would_refuse_is_not_sent(put_bytes: tuple[int, ...], claims: int) -> None:
    """More than 128 writes fail at the member, fast."""
    with pytest.raises(ValueError, match="128 puts"):
        await raw(Member()).batched(put_bytes, claims=claims, concurrency=1, for_s=0.01)


async def test_a_refused_transaction_is_no_figure() -> None:
    """A refusal costs no disk write, and would be counted as a claim."""
    with pytest.raises(ExceptionGroup) as told:
        await raw(Member(spoiled=True)).compare_and_put((1,), concurrency=1, for_s=0.01)
    assert told.group_contains(Refused)


async def test_two_runs_do_not_meet() -> None:
    """The second would find the first one's keys, and be refused."""
    member = Member()
    for _ in range(2):
        await raw(member).compare_and_put((1,), concurrency=1, for_s=0.01)


def test_the_first_version_is_a_creation() -> None:
    """A key that somebody else left there would be overwritten."""
    request = transaction([b"h"], 0, 7, (4, 2))
    assert request.compare[0].mod_revision == 0
    assert [op.request_put.key for op in request.success] == [b"h", b"h/00000007-1"]


@pytest.mark.parametrize("url", ["127.0.0.1:2379", "https://127.0.0.1:2379", "http://127.0.0.1", "http://:2379"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """gRPC would look for it until the deadline."""
    with pytest.raises(ValueError, match="http://host:port"):
        target(url)


def test_the_target_of_a_url() -> None:
    """An address that gRPC does not take."""
    assert target("http://127.0.0.1:2379") == "127.0.0.1:2379"
