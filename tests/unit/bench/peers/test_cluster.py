"""The cluster that all peers are asked about: two peers that were told different ones are not compared."""

import json

import pytest

from tests.bench.placement.peers.cluster import (
    Answer,
    Cluster,
    Host,
    Instance,
    Round,
    Shape,
    cluster_of,
    free,
    round_of,
    row_of,
    rows_of,
    whole_cpus,
)

HOSTS = (Host("a", 8000, 16384, 100), Host("b", 4000, 8192))
CLUSTER = Cluster(HOSTS, (Instance("v1", "a", Shape(2000, 4096, 30)), Instance("v2", "a", Shape(1500, 1024))))


def test_what_is_free_follows_from_what_runs() -> None:
    """A peer that is told of room that is taken places what the others refuse."""
    assert free(CLUSTER) == {"a": Shape(4500, 11264, 70), "b": Shape(4000, 8192, 0)}
    assert list(free(CLUSTER)) == ["a", "b"]


@pytest.mark.parametrize(
    ("cluster", "word"),
    [
        (Cluster(HOSTS, (Instance("v", "b", Shape(4001, 1)),)), "more than it has"),
        (Cluster(HOSTS, (Instance("v", "b", Shape(1, 8193)),)), "more than it has"),
        (Cluster(HOSTS, (Instance("v", "b", Shape(1, 1, 1)),)), "more than it has"),
        (Cluster(HOSTS, (Instance("v", "c", Shape(1, 1)),)), "which is no host"),
        (Cluster((HOSTS[0], HOSTS[0])), "two hosts"),
        (Cluster(HOSTS, (Instance("v", "a", Shape(1, 1)), Instance("v", "b", Shape(1, 1)))), "two instances"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(cluster: Cluster, word: str) -> None:
    """Each peer makes something else of it, silently."""
    with pytest.raises(ValueError, match=word):
        free(cluster)


def test_a_part_of_a_cpu_is_not_rounded() -> None:
    """A peer whose VMs are larger or smaller than ours."""
    assert whole_cpus(2000) == 2
    with pytest.raises(ValueError, match="1500 millicores"):
        whole_cpus(1500)


def test_the_wire_keeps_all_of_a_cluster() -> None:
    """A peer in its own process that is told another cluster."""
    assert cluster_of(json.loads(json.dumps(rows_of(CLUSTER)))) == CLUSTER


def test_the_wire_keeps_all_of_a_round() -> None:
    """A refusal that counts as a placement, or a time that is lost on the way."""
    answers = (Answer("a", 0.5, "", {"query": 0.25}), Answer(None, 0.25, "full"))
    kept = round_of(json.loads(json.dumps([row_of(answer) for answer in answers])), 0.125)
    assert kept == Round(answers, 0.125)
    assert kept.took_s == 0.75
