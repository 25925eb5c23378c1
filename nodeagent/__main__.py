"""`hostler-nodeagent [--config FILE]`: the agent of one host. The only place here that knows uvloop."""

import argparse
import os
import sys
from pathlib import Path

import uvloop

# Before gRPC is imported: its fork handlers are for programs that go on in the child; the agent only starts other programs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from hostler.server import logs, startup
from hostler.server.notify import Notifier
from hostler.server.settings import load
from nodeagent import app
from nodeagent.settings import Settings

CONFIG = Path("/etc/hostler/nodeagent.toml")


def main() -> int:
    parser = argparse.ArgumentParser(prog="hostler-nodeagent", description="Hostler's node agent.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings file, TOML (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        settings = load(Settings, arguments.config, environ=os.environ, env_prefix="HOSTLER_AGENT_")
        # libvirt's bindings are a compiled extra: say so in one line where they are missing.
        try:
            from nodeagent.parts import open_parts
        except ModuleNotFoundError as error:
            raise startup.StartupError(f"{error.name} is not installed; pip install 'hostler-daemons[libvirt]'") from error
    except startup.StartupError as error:
        return startup.exit_with(error)
    logs.configure(level=settings.log_level)
    notifier = Notifier(os.environ)
    return startup.run(lambda shutdown: app.main(settings, shutdown, notifier, open_parts), loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    sys.exit(main())
