"""FenceNode: the node is FENCED as the operation is accepted; then its VMs are stopped in the records, and what others have in hand is awaited."""

from hostler.errors import HostlerError, Internal, Reason
from scheduler.core.decide_fence import finish_fence, not_stopped, stop_vms
from scheduler.engine.driving import RETRY_MOST_S, Run, Verbs

NAMED = 3
"""VMs named in a reason; the rest are counted."""


async def fence(run: Run) -> None:
    while await run.write(lambda state: stop_vms(state, run.operation_id)):
        pass
    by = run.by()
    if await run.write(lambda state: finish_fence(state, run.operation_id, by)):
        return
    left = [kept.record for kept in not_stopped(run.state, run.operation.target_id)]
    names = ", ".join(f"{vm.vm_id} ({vm.operation_id})" for vm in left[:NAMED])
    run.waiting_for = f"{len(left)} of its VMs are in the hands of operations that are ending: {names}" + (" ..." if left[NAMED:] else "")
    await run.mirror.await_change(run.state.revision, RETRY_MOST_S)


async def turn_back(run: Run, error: HostlerError) -> None:
    """Nothing can refuse it; the proof is a fact."""
    raise Internal(Reason.INTERNAL, "A fence cannot turn back.") from error


FENCE = Verbs(fence, turn_back)
