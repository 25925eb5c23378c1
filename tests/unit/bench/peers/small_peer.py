"""A peer for the tests of the pipe: places on the first host with room, or fails as its settings say."""

import time
from typing import Any

from tests.bench.placement.peers.cluster import Answer, Cluster, Shape
from tests.bench.placement.peers.served import serve


class FirstFit:
    """Counts CPU alone."""

    def __init__(self, cluster: Cluster, settings: dict[str, Any]) -> None:
        self._whole = {host.id: host.cpu_milli for host in cluster.hosts}
        self._left = dict(self._whole)
        self._fails = settings.get("fails", "")

    def place(self, shape: Shape) -> Answer:
        if self._fails == "breaks":
            raise RuntimeError("its disk is gone")
        if self._fails == "hangs":
            time.sleep(60)  # noqa: TID251 it does hang
        for host_id, left in self._left.items():
            if left >= shape.cpu_milli:
                self._left[host_id] = left - shape.cpu_milli
                return Answer(host_id, 0.25, "", {"query": 0.25})
        return Answer(None, 0.5, "full")

    def undo(self) -> None:
        self._left = dict(self._whole)


def opened(cluster: Cluster, settings: dict[str, Any]) -> tuple[FirstFit, dict[str, Any]]:
    if settings.get("fails") == "lacks":
        raise ModuleNotFoundError(name="wonderscan")
    return FirstFit(cluster, settings), {"version": "7"}


if __name__ == "__main__":
    serve(opened)
