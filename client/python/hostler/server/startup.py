"""How a daemon's `__main__` runs its main coroutine: signals, the bound on shutting down, exit codes, and failures said in one line.

SIGTERM and SIGINT set the stop event that `main` watches; a second signal, or SHUTDOWN_LIMIT_S without an end, cancels it. What a person can
mend (`StartupError`) is one line on stderr and exit code 1 (2 for settings); anything else is a bug: traceback in the log, exit code 70. The
event loop is passed in by `__main__`, the only place that may know uvloop.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger(__name__)

EXIT_STARTUP, EXIT_SETTINGS, EXIT_BUG = 1, 2, 70
SHUTDOWN_LIMIT_S = 60.0
"""After the stop signal; below systemd's default TimeoutStopSec of 90 s, so that we write down what was cut off."""


class StartupError(Exception):
    """The daemon cannot run for a reason a person can mend; the text is one line: what, and what to do."""

    exit_code = EXIT_STARTUP


@dataclass(slots=True)
class Shutdown:
    """What `main` watches: `await shutdown.requested.wait()`, then end within the limit."""

    requested: asyncio.Event = field(default_factory=asyncio.Event)


Main = Callable[[Shutdown], Awaitable[None]]


def run(main: Main, *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None, limit_s: float = SHUTDOWN_LIMIT_S) -> int:
    """Run `main` to its end and return the process's exit code."""
    # What was imported stays until the end. Looking through it again at each full collection takes 30 ms, and a guest may be standing still.
    gc.collect()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_supervise(main, limit_s))
    except (Exception, asyncio.CancelledError) as err:
        return _report(err)
    return 0


def exit_with(error: StartupError) -> int:
    """Print the one line; for failures before there is a loop (settings)."""
    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return error.exit_code


def one_line(text: str) -> str:
    return " ".join(text.split())


async def _supervise(main: Main, limit_s: float) -> None:
    shutdown, loop = Shutdown(), asyncio.get_running_loop()
    task = asyncio.ensure_future(main(shutdown))
    deadline: asyncio.TimerHandle | None = None

    def on_signal(number: signal.Signals) -> None:
        nonlocal deadline
        if shutdown.requested.is_set():
            log.warning("second signal: stopping at once", signal=number.name)
            task.cancel()
            return
        log.info("stopping", signal=number.name)
        shutdown.requested.set()
        deadline = loop.call_later(limit_s, task.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    finally:
        if deadline is not None:
            deadline.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _report(err: BaseException) -> int:
    """The exit code of a failure, said where it belongs. A TaskGroup's group counts as its startup errors if it has any."""
    if isinstance(err, asyncio.CancelledError):
        log.error("stopped before everything was put away")
        return EXIT_STARTUP
    for leaf in _leaves(err):
        if isinstance(leaf, StartupError):
            return exit_with(leaf)
    log.error("crashed", exc_info=err)
    return EXIT_BUG


def _leaves(err: BaseException) -> list[BaseException]:
    if not isinstance(err, BaseExceptionGroup):
        return [err]
    return [leaf for inner in err.exceptions for leaf in _leaves(inner)]
