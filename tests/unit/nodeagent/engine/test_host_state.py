"""What an agent keeps of handoffs that have ended."""

from pathlib import Path

from hostler.model.copy import Stage
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Incoming
from nodeagent.engine.host_state import ENDED_KEPT, HostState


async def test_ended_handoffs_do_not_fill_the_disk(tmp_path: Path) -> None:
    """A host that keeps a file of every move for ever, or forgets one that has not ended."""
    state = HostState(StateDirectory(tmp_path))
    await state.keep_incoming(Incoming("going-on", "vm", "n2", 1, Stage.PREPARED))
    for number in range(ENDED_KEPT + 5):
        await state.keep_incoming(Incoming(f"op{number}", f"vm{number}", "n2", 1, Stage.PREPARED))
        await state.keep_incoming(Incoming(f"op{number}", f"vm{number}", "n2", 1, Stage.FINISHED))
    kept = set(state.incoming)
    assert kept == {"going-on", *(f"op{number}" for number in range(5, ENDED_KEPT + 5))}
    assert set(HostState(StateDirectory(tmp_path)).incoming) == kept
