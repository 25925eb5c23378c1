"""An operation in a program's hands: watch it, wait for it, cancel it, whatever happens to the server that was asked first.

Any replica of a cluster answers for any operation, and each watch begins with how the operation stands. So a lost stream is simply opened again
elsewhere, or on the same single host.
A stream that is silent for long is opened again too: an operation at rest cannot be told from a replica that hangs.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from hostler.api.type.v1.operation_pb2 import Operation
from hostler.connection import RECONNECT_S, Attempts, Connection
from hostler.errors import DeadlineExceeded, HostlerError, Reason
from hostler.rpc_status import from_status

QUIET_S = 15.0
"""A silent watch is opened again on the next replica after so long."""


@dataclass(eq=False)
class OperationFailed(HostlerError):
    """The operation was accepted and ended FAILED or CANCELLED. `operation` is how it ended; `__cause__` is the error of the taxonomy."""

    operation: Operation = field(default_factory=Operation)


@dataclass(slots=True)
class OperationHandle:
    """`operation` is the newest that was heard of it."""

    _connection: Connection[Any]
    operation: Operation

    @property
    def name(self) -> str:
        """`operations/{operation}`; empty after validate_only."""
        return self.operation.name

    async def wait(self, timeout_s: float | None = None, on_progress: Callable[[Operation], None] | None = None) -> Operation:
        """The operation when it has succeeded; `on_progress` hears each change. After validate_only: at once.

        Raises OperationFailed; DeadlineExceeded when `timeout_s` passed (the operation goes on, wait again); Unavailable when no replica
        answered for RECONNECT_S.
        """
        if not self.name:
            return self.operation
        timer = asyncio.timeout(timeout_s)
        try:
            async with timer, aclosing(self.watch()) as states:
                async for operation in states:
                    if on_progress is not None:
                        on_progress(operation)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise self._too_late(timeout_s or 0.0) from error
        return self.result()

    async def watch(self) -> AsyncGenerator[Operation]:
        """The operation now and at each change until it is done. Raises NotFound, Unavailable."""
        request = self._messages.WatchOperationRequest(name=self.name)
        attempts = Attempts(self._connection, RECONNECT_S)
        last: Operation | None = None
        while True:
            replica = self._connection.replica
            try:
                stream = self._connection.stream(replica, lambda stubs: stubs.operations.WatchOperation(request), QUIET_S)
                async with aclosing(stream) as answers:
                    async for answer in answers:
                        attempts.succeeded()
                        self.operation = answer.operation
                        if answer.operation != last:
                            last = answer.operation
                            yield answer.operation
                        if answer.operation.done:
                            return
            except HostlerError as lost:
                await attempts.failed(replica, lost)

    async def refresh(self) -> Operation:
        """How it stands now."""
        request = self._messages.GetOperationRequest(name=self.name)
        self.operation = await self._connection.call(lambda stubs: stubs.operations.GetOperation, request)
        return self.operation

    async def cancel(self) -> Operation:
        """Ask it to stop; wait for it to see whether it did. Raises FailedPrecondition (NOT_CANCELLABLE)."""
        request = self._messages.CancelOperationRequest(name=self.name)
        self.operation = await self._connection.call(lambda stubs: stubs.operations.CancelOperation, request)
        return self.operation

    @property
    def _messages(self) -> Any:  # noqa: ANN401 a generated module
        return self._connection.api.operations

    def result(self) -> Operation:
        """The operation as it ended. Raises OperationFailed."""
        if self.operation.state == Operation.SUCCEEDED:
            return self.operation
        cause = from_status(self.operation.error)
        metadata = {**cause.metadata, "operation": self.name}
        raise OperationFailed(cause.reason, cause.message, cause.fix, cause.violations, metadata, None, self.operation) from cause

    def _too_late(self, timeout_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            Reason.DEADLINE,
            f"{self.operation.verb} of {self.operation.target} is not done after {timeout_s:g} s: {self.operation.phase or 'PENDING'}.",
            f"It goes on; wait for {self.name} again, or cancel it.",
            metadata={"operation": self.name},
        )
