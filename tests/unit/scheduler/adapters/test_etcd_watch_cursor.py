"""What the watch makes of responses that a healthy server rarely sends: fragments, repetitions, progress at the wrong time."""

import pytest

from hostler.internal.etcd.v1 import wire_pb2 as wire
from scheduler.adapters.etcd_watch import WatchCanceled, WatchCursor, answers_are_ordered
from scheduler.ports import KeyDeleted, KeyPut, RevisionCompacted, WatchBatch


def put(key: str, revision: int) -> wire.Event:
    return wire.Event(kv=wire.KeyValue(key=key.encode(), mod_revision=revision))


def response(*events: wire.Event, fragment: bool = False) -> wire.WatchResponse:
    return wire.WatchResponse(events=events, fragment=fragment)


def progress(revision: int, watch_id: int = -1) -> wire.WatchResponse:
    return wire.WatchResponse(header=wire.ResponseHeader(revision=revision), watch_id=watch_id)


def keys(batch: WatchBatch | None) -> list[str]:
    assert batch is not None
    return [event.item.key if isinstance(event, KeyPut) else event.key for event in batch.events]


def test_revision_cut_by_a_fragment_is_held_until_it_is_whole() -> None:
    """What is whole is not held: a backlog of any size takes the memory of one transaction."""
    cursor = WatchCursor(5)
    first = cursor.take(response(put("a", 5), put("b", 6), put("c", 7), fragment=True), answers_ordered=False)
    assert keys(first) == ["a", "b"]
    assert cursor.next_revision == 7
    assert cursor.take(response(put("d", 7), fragment=True), answers_ordered=False) is None
    last = cursor.take(response(put("e", 7), put("f", 8)), answers_ordered=False)
    assert keys(last) == ["c", "d", "e", "f"]
    assert cursor.next_revision == 9


def test_half_a_revision_of_a_dead_stream_is_forgotten() -> None:
    """The new stream sends it again; keeping the half would hand it over twice."""
    cursor = WatchCursor(5)
    cursor.take(response(put("a", 5), fragment=True), answers_ordered=False)
    cursor.begin()
    assert cursor.next_revision == 5
    assert keys(cursor.take(response(put("a", 5), put("b", 5)), answers_ordered=False)) == ["a", "b"]


def test_events_that_were_handed_over_do_not_come_twice() -> None:
    """Old servers repeat events when a lagging member takes a snapshot."""
    cursor = WatchCursor(5)
    cursor.take(response(put("a", 5)), answers_ordered=False)
    assert cursor.take(response(put("a", 5)), answers_ordered=False) is None
    assert keys(cursor.take(response(put("a", 5), put("b", 6)), answers_ordered=False)) == ["b"]


def test_created_response_does_not_move_the_cursor() -> None:
    """Its header revision is ahead of everything that is still to come."""
    cursor = WatchCursor(5)
    created = wire.WatchResponse(header=wire.ResponseHeader(revision=90), created=True)
    assert cursor.take(created, answers_ordered=True) is None
    assert cursor.next_revision == 5


def test_answer_to_a_progress_request_proves_nothing_on_an_old_server() -> None:
    """It can overtake events: it shows that the stream lives, at the revision that was reached anyway."""
    cursor = WatchCursor(5)
    assert cursor.take(progress(90), answers_ordered=False) == WatchBatch(4, ())
    assert keys(cursor.take(response(put("a", 6)), answers_ordered=False)) == ["a"]


def test_ordered_progress_moves_the_cursor_and_never_back() -> None:
    """So that a quiet watch can resume after a compaction; a lagging member's older answer changes nothing."""
    cursor = WatchCursor(5)
    assert cursor.take(progress(90), answers_ordered=True) == WatchBatch(90, ())
    assert cursor.take(progress(80), answers_ordered=True) == WatchBatch(90, ())
    assert cursor.next_revision == 91


def test_servers_own_notification_is_proof_on_every_server() -> None:
    """It carries the watch's id and takes the same way as the events."""
    cursor = WatchCursor(5)
    assert cursor.take(progress(90, watch_id=0), answers_ordered=False) == WatchBatch(90, ())
    assert cursor.next_revision == 91


def test_progress_amid_fragments_is_not_handed_over() -> None:
    """It would say that a revision is complete of which a part is still held."""
    cursor = WatchCursor(5)
    cursor.take(response(put("a", 5), fragment=True), answers_ordered=True)
    assert cursor.take(progress(90), answers_ordered=True) is None
    assert keys(cursor.take(response(put("b", 5)), answers_ordered=True)) == ["a", "b"]


def test_deletion_has_key_and_revision() -> None:
    """A deletion read as a put of nothing would be an empty record."""
    gone = wire.Event(type=wire.Event.DELETE, kv=wire.KeyValue(key=b"a", mod_revision=5))
    assert WatchCursor(5).take(response(gone), answers_ordered=False) == WatchBatch(5, (KeyDeleted("a", 5),))


def test_canceled_watch_is_never_silence() -> None:
    """Compacted: the reader must list again. Anything else: another stream."""
    with pytest.raises(RevisionCompacted) as caught:
        WatchCursor(5).take(wire.WatchResponse(canceled=True, compact_revision=50), answers_ordered=True)
    assert caught.value.compact_revision == 50
    with pytest.raises(WatchCanceled, match="no leader"):
        WatchCursor(5).take(wire.WatchResponse(canceled=True, cancel_reason="etcdserver: no leader"), answers_ordered=True)


@pytest.mark.parametrize(
    ("version", "ordered"),
    [
        ("3.4.23", False),
        ("3.4.40", False),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0-rc.1", True),
        ("4.0.0", True),
        ("", False),
        ("new", False),
    ],
)
def test_versions_whose_answers_are_ordered(version: str, ordered: bool) -> None:
    """A version that is not known is not trusted."""
    assert answers_are_ordered(version) is ordered
