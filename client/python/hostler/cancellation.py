"""Keeps a task's cancellation from being lost in a gRPC call.

A call of grpc.aio awaits tasks of its own, and these take a CancelledError for themselves. When a call ends at the very moment in which the task that
waits for it is cancelled, the waiting task sees how the call ended and nothing of its cancellation; a loop that then tries again runs for ever, and
whoever waits for its end as well.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """Put directly around the await of a gRPC call. Raises CancelledError if the task was cancelled meanwhile, however the call ended."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
