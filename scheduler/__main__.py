"""`hostler-scheduler [--config FILE]`: one replica of the scheduler. The only place here that knows uvloop."""

import argparse
import os
import sys
from pathlib import Path

import uvloop

from hostler.server import logs, startup
from hostler.server.notify import Notifier
from hostler.server.settings import load
from scheduler import app
from scheduler.settings import Settings

CONFIG = Path("/etc/hostler/scheduler.toml")


def main() -> int:
    parser = argparse.ArgumentParser(prog="hostler-scheduler", description="One replica of Hostler's scheduler.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings file, TOML (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        settings = load(Settings, arguments.config, environ=os.environ, env_prefix="HOSTLER_SCHEDULER_")
    except startup.StartupError as error:
        return startup.exit_with(error)
    logs.configure(level=settings.log_level)
    notifier = Notifier(os.environ)
    return startup.run(lambda shutdown: app.main(settings, shutdown, notifier), loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    sys.exit(main())
