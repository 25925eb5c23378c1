"""A peer that needs another Python than ours runs in a process of its own: one JSON line in, one line out, until its input ends.

It reads the cluster, says that it is ready, and answers rounds of shapes. It times itself, each shape alone, so that neither the pipe nor JSON is in
a figure. A round begins with the cluster as it was given: what one has placed is taken back after it, unseen by the clock.
`Served` is this side of the pipe, `serve` the peer's; the latter imports nothing that the other Python may lack.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tests.bench.placement.peers.cluster import (
    Answer,
    Cluster,
    Round,
    Shape,
    cluster_of,
    round_of,
    row_of,
    rows_of,
    rows_of_shapes,
    shapes_of,
)
from tests.bench.placement.peers.programs import PeerFailed, PeerMissing, last_line

ROOT = Path(__file__).resolve().parents[4]
END_S = 10.0
"""How long a peer whose input has ended may take to end."""


class Placer(Protocol):
    """What the peer's process holds: a cluster that it places into."""

    def place(self, shape: Shape) -> Answer: ...

    def undo(self) -> None:
        """Take back what was placed since the last time."""


class Served:
    """A running peer; also a context manager. `told`: what it said of itself when it was ready."""

    def __init__(
        self, module: str, python: Path, cluster: Cluster, *, install: str, ready_s: float, settings: dict[str, Any] | None = None
    ) -> None:
        """Raises PeerMissing when `python`, or what it needs there, is not there; PeerFailed, TimeoutError when it does not get ready."""
        if not python.is_file():
            raise PeerMissing(f"{python} is no Python for {module}: {install}.")
        self._name = module.rpartition(".")[2]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 it is closed with the peer
        self._process = subprocess.Popen(
            [str(python), "-m", module], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
        )  # fmt: skip
        try:
            self.told = self._ask({"cluster": rows_of(cluster), "settings": settings or {}}, ready_s)
            if "missing" in self.told:
                raise PeerMissing(f"{python} has no {self.told['missing']}: {install}.")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def round(self, shapes: Iterable[Shape], timeout_s: float) -> Round:
        """Each shape placed before the next is asked. Raises PeerFailed, TimeoutError; the peer has ended then."""
        told = self._ask({"shapes": rows_of_shapes(shapes)}, timeout_s)
        return round_of(told["answers"], told["cpu_s"])

    def _ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(timeout_s, self._end_late, [late])
        timer.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise TimeoutError(f"{self._name} did not answer within {timeout_s:.0f} s")
        if not answer:
            raise PeerFailed(f"{self._name} ended: {self._last_words()}")
        told: dict[str, Any] = json.loads(answer)
        return told

    def _end_late(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def _last_words(self) -> str:
        self._process.wait(END_S)
        self._stderr.seek(0)
        return last_line(self._stderr.read())

    def close(self) -> None:
        """End the peer. Again is no error."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with suppress(BrokenPipeError):  # it has ended already, and what was not flushed is nobody's any more
                    pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serve(opened: Callable[[Cluster, dict[str, Any]], tuple[Placer, dict[str, Any]]]) -> None:
    """The peer's side, until its input ends. `opened` makes what places, and what is said of it; it raises ImportError for what is not installed."""
    lines = iter(sys.stdin.readline, "")
    first = json.loads(next(lines))
    began_s = time.perf_counter()
    try:
        placer, told = opened(cluster_of(first["cluster"]), first["settings"])
    except ImportError as error:
        _say({"missing": error.name or str(error)})
        return
    _say({**told, "took_s": time.perf_counter() - began_s})
    for line in lines:
        shapes = shapes_of(json.loads(line)["shapes"])
        cpu_s = time.process_time()
        answers = [placer.place(shape) for shape in shapes]
        cpu_s = time.process_time() - cpu_s
        placer.undo()
        _say({"answers": [row_of(answer) for answer in answers], "cpu_s": cpu_s})


def _say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)
