"""What the ports raise, as refusals of the taxonomy: decided once, here, for every method the agent serves."""

from hostler.errors import FailedPrecondition, HostlerError, NoCapacity, NotFound, Reason, Unavailable
from nodeagent.ports import AuthorityUnavailable, HypervisorRefused, HypervisorUnavailable, PoolFull, PoolMissing

RETRY_S = 2.0
"""What an unavailable part is given before the caller tries again."""


def refusal(error: BaseException) -> HostlerError | None:
    """The refusal that a port's exception means; None: it is no port's exception."""
    match error:
        case HypervisorUnavailable():
            return Unavailable(
                Reason.HYPERVISOR_UNAVAILABLE, "The hypervisor on this host does not answer.", "Try again.", retry_after_s=RETRY_S
            )
        case HypervisorRefused():
            return FailedPrecondition(Reason.HYPERVISOR_REFUSED, str(error))
        case AuthorityUnavailable():
            return Unavailable(Reason.SCHEDULER_UNAVAILABLE, "No scheduler replica answers this host.", "Try again.", retry_after_s=RETRY_S)
        case PoolMissing():
            return NotFound(Reason.POOL_NOT_FOUND, str(error))
        case PoolFull():
            return NoCapacity(Reason.POOL_CAPACITY_EXCEEDED, str(error))
        case _:
            return None
