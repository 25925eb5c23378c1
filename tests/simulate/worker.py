"""What one of the processes of a run does; in a module of its own, because a spawned process cannot import `__main__`."""

import gc
import logging
import sys
from pathlib import Path

import structlog

from tests.simulate.mutations import MUTATIONS
from tests.simulate.results import modules_never_run
from tests.simulate.seed import OPERATIONS, Run, run_seed


def prepare(story: bool) -> None:
    """The daemons' logs go into the story, or nowhere; what is loaded stays, and is not looked at by a collection."""
    gc.freeze()
    sys.modules.update(dict.fromkeys(modules_never_run(Path.cwd()), None))  # type: ignore[arg-type]  # None: whoever imports it gets an ImportError
    if not story:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=True)


def live(seed: int, *, story: bool, mutation: str, aim: str = "", operations: int = OPERATIONS) -> Run:
    """One seed, with that guard taken out if it is named, and more of that kind of fault; a guard has a kind of its own."""
    if not mutation:
        return run_seed(seed, story=story, aim=aim, operations=operations)
    return run_seed(seed, story=story, mutation=MUTATIONS[mutation].without, aim=MUTATIONS[mutation].aim, operations=operations)
