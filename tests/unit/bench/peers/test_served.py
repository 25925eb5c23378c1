"""Peers in a process of their own: what they answer has to arrive, and one that is missing, dies or hangs has to be told and gone."""

import os
import sys
from pathlib import Path

import pytest

from tests.bench.placement.peers.cluster import Answer, Cluster, Host, Shape
from tests.bench.placement.peers.programs import PeerFailed, PeerMissing
from tests.bench.placement.peers.served import Served

MODULE = "tests.unit.bench.peers.small_peer"
PYTHON = Path(sys.executable)
CLUSTER = Cluster((Host("a", 2000, 1024), Host("b", 4000, 1024)))
SHAPES = [Shape(2000, 1), Shape(2000, 1), Shape(8000, 1)]
WAIT_S = 60.0


def served(fails: str = "", python: Path = PYTHON) -> Served:
    return Served(MODULE, python, CLUSTER, install="pip install wonder", ready_s=WAIT_S, settings={"fails": fails})


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_each_shape_is_placed_after_the_one_before() -> None:
    """A peer that is asked as if nothing had been placed yet, or whose refusal counts as a placement."""
    with served() as peer:
        assert peer.told["version"] == "7"
        answers = peer.round(SHAPES, WAIT_S).answers
    assert answers == (Answer("a", 0.25, "", {"query": 0.25}), Answer("b", 0.25, "", {"query": 0.25}), Answer(None, 0.5, "full"))


def test_every_round_begins_with_the_same_cluster() -> None:
    """The second of two rounds would be of a fuller cluster than Hostler's."""
    with served() as peer:
        assert peer.round(SHAPES, WAIT_S).answers == peer.round(SHAPES, WAIT_S).answers


def test_a_peer_is_gone_when_it_is_closed() -> None:
    """It would share the machine with what is measured next."""
    with served() as peer:
        assert alive(peer.pid)
    assert not alive(peer.pid)
    peer.close()


def test_a_missing_python_is_told(tmp_path: Path) -> None:
    """Somebody who has not made the peers' venv."""
    with pytest.raises(PeerMissing, match=r"none is no Python for tests.*: pip install wonder\.$"):
        served(python=tmp_path / "none")


def test_a_missing_package_is_told() -> None:
    """Somebody whose venv has not all the peers."""
    with pytest.raises(PeerMissing, match=r"has no wonderscan: pip install wonder\.$"):
        served("lacks")


def test_a_peer_that_breaks_is_told_in_its_own_words() -> None:
    """A figure of a peer that failed half way."""
    with served("breaks") as peer, pytest.raises(PeerFailed, match="small_peer ended: RuntimeError: its disk is gone"):
        peer.round(SHAPES, WAIT_S)
    assert not alive(peer.pid)


def test_a_peer_that_hangs_is_ended() -> None:
    """A comparison that never ends."""
    with served("hangs") as peer, pytest.raises(TimeoutError, match="small_peer did not answer within 1 s"):
        peer.round(SHAPES, 1.0)
    assert not alive(peer.pid)
