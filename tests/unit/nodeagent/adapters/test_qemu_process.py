"""Signals past libvirt, on real processes that carry a UUID as QEMU does."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from nodeagent.adapters import qemu_process
from nodeagent.adapters.qemu_process import QemuProcesses

# Three threads that wait, then says that they are there.
SCRIPT = """
import threading
ballast = b"x" * (256 << 20)  # takes the kernel a while to give back, so that a kill that does not wait shows
for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
KILL_S = 1.0


class StandIn:
    """A process with QEMU's way of naming itself, and libvirt's pid file."""

    def __init__(self, run_dir: Path, named: str) -> None:
        self.uid = str(uuid.uuid4())
        self.run_dir = run_dir
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, "-uuid", named or self.uid], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        (run_dir / f"{self.uid}.pid").write_text(str(self.process.pid))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path, "")
    yield made
    made.end()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[StandIn]:
    """A process that has the number in the pid file and is somebody else: the number was used again."""
    made = StandIn(tmp_path, str(uuid.uuid4()))
    yield made
    made.end()


def test_it_is_frozen_when_all_its_threads_are_and_thawed_after(stand_in: StandIn) -> None:
    """An inspection of a process with a running thread is worth nothing."""
    processes = QemuProcesses(stand_in.run_dir)
    assert not processes.is_frozen(stand_in.uid)
    assert processes.freeze(stand_in.uid)
    assert processes.is_frozen(stand_in.uid)
    assert processes.signal(stand_in.uid, signal.SIGCONT)
    assert not processes.is_frozen(stand_in.uid)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("frozen", [False, True])
def test_kill_waits_for_the_death_frozen_or_not(stand_in: StandIn, factory: type, frozen: bool) -> None:
    """Whoever goes on while the process lives has two of them."""
    processes = QemuProcesses(stand_in.run_dir)
    if frozen:
        processes.freeze(stand_in.uid)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(processes.kill(stand_in.uid), KILL_S))
        assert stand_in.process.poll() == -signal.SIGKILL
        runner.run(processes.kill(stand_in.uid))
    assert not processes.freeze(stand_in.uid)
    assert processes.pid(stand_in.uid) == 0


def test_a_number_that_was_used_again_is_never_hit(stranger: StandIn) -> None:
    """A stale pid file must not kill another VM."""
    processes = QemuProcesses(stranger.run_dir)
    assert processes.pid(stranger.uid) == 0
    assert not processes.freeze(stranger.uid)
    asyncio.run(processes.kill(stranger.uid))
    assert stranger.process.poll() is None
    assert not processes.is_frozen(stranger.uid)


@pytest.mark.parametrize("content", ["", "x", None])
def test_without_a_pid_there_is_no_process(tmp_path: Path, content: str | None) -> None:
    """A file half written is no process, and no error."""
    if content is not None:
        (tmp_path / "a.pid").write_text(content)
    processes = QemuProcesses(tmp_path)
    assert processes.pid("a") == 0
    assert not processes.freeze("a")
    assert processes.pid("../a") == 0


def test_an_image_that_was_taken_from_it_is_its_own_again(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that has arrived and stands still for ever: the source's libvirt gave its images back to root."""
    processes, image, given = QemuProcesses(stand_in.run_dir), tmp_path / "disk.qcow2", list[tuple[int, int]]()
    image.touch()
    assert not processes.own(stand_in.uid, [str(image)])
    monkeypatch.setattr(qemu_process, "_user", lambda _pid: (64055, 64056))
    monkeypatch.setattr(os, "fchown", lambda _descriptor, *user: given.append(user))
    assert processes.own(stand_in.uid, [str(image)])
    assert given == [(64055, 64056)]


def test_what_is_made_its_own_is_no_link_and_of_no_stranger(stand_in: StandIn, stranger: StandIn, tmp_path: Path) -> None:
    """A link planted in a pool would give another file away."""
    image = tmp_path / "disk.qcow2"
    image.symlink_to("/etc/shadow")
    with pytest.raises(OSError, match="symbolic links"):
        QemuProcesses(stand_in.run_dir).own(stand_in.uid, [str(image)])
    assert not QemuProcesses(stranger.run_dir).own(stranger.uid, [str(image)])
