"""What the command's exit status says, one class of outcome each; scripts rely on these numbers, they never change."""

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostler.errors import HostlerError


class ExitCode(IntEnum):
    """See EPILOG."""

    OK = 0
    ELSE = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    NO_CAPACITY = 5
    UNAVAILABLE = 6
    PERMISSION = 7
    OPERATION_FAILED = 8
    INTERRUPTED = 130


EPILOG = (
    "Exit status: 0 done, 2 usage or invalid request, 3 not found, 4 exists, in conflict or not in the right state, 5 no capacity, "
    "6 no answer or too late, 7 not permitted, 8 the operation failed or was cancelled, 130 interrupted, 1 anything else."
)


def exit_code(error: "HostlerError") -> ExitCode:
    """The status for a refusal."""
    from hostler import errors
    from hostler.operations import OperationFailed

    if error.reason is errors.Reason.TOO_MANY_REQUESTS:
        return ExitCode.UNAVAILABLE
    match error:
        case OperationFailed():
            return ExitCode.OPERATION_FAILED
        case errors.InvalidRequest():
            return ExitCode.USAGE
        case errors.NotFound():
            return ExitCode.NOT_FOUND
        case errors.AlreadyExists() | errors.Conflict() | errors.FailedPrecondition():
            return ExitCode.CONFLICT
        case errors.NoCapacity():
            return ExitCode.NO_CAPACITY
        case errors.Unavailable() | errors.DeadlineExceeded():
            return ExitCode.UNAVAILABLE
        case errors.PermissionDenied() | errors.Unauthenticated():
            return ExitCode.PERMISSION
    return ExitCode.ELSE
