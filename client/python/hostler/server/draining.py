"""How a server lets go of its callers: unary calls may finish, streams end at once with SHUTTING_DOWN, new calls are refused with the same.

Without this, `server.stop(grace)` waits out its whole grace for every open watch or heartbeat, which by nature never ends by itself.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.errors import Reason, Unavailable
from hostler.server.rpc_chain import Call

RETRY_AFTER_S = 1.0
"""Another replica may answer at once; this one is back after a restart."""


class Draining:
    """The step, and the switch that `RpcServer.stop` throws."""

    def __init__(self) -> None:
        self._begun = False
        self._streams: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """From now on nothing new; every open stream ends."""
        self._begun = True
        now = asyncio.get_running_loop().time()
        for stream in self._streams:
            stream.reschedule(now)

    @asynccontextmanager
    async def step(self, call: Call) -> AsyncIterator[None]:
        if self._begun:
            raise _leaving()
        if not call.is_stream:
            yield
            return
        # A timeout that never comes by itself is the one structured way to end another task's block from outside.
        lifetime = asyncio.timeout(None)
        try:
            async with lifetime:
                self._streams.add(lifetime)
                try:
                    yield
                finally:
                    self._streams.discard(lifetime)
        except TimeoutError as err:
            if not lifetime.expired():
                raise
            raise _leaving() from err


def _leaving() -> Unavailable:
    return Unavailable(
        Reason.SHUTTING_DOWN, "This server is shutting down.", "Repeat the call; another replica may answer.", retry_after_s=RETRY_AFTER_S
    )
