"""The command `python -m hostlerlab up|down|status|exec`."""

import argparse
import os
import sys
import time
from pathlib import Path

from hostlerlab.lab import Lab, default_specs, leftovers
from hostlerlab.processes import command_line

DEFAULT_FOLDER = Path("build/lab")
DEFAULT_HOSTS = 3


def main() -> int:
    options = _parser().parse_args()
    match options.command:
        case "up":
            return _up(options.dir, options.hosts, options.fresh, options.lockd)
        case "down":
            return _down(options.dir)
        case "status":
            return _status(options.dir)
        case _:
            return _exec(options.dir, options.host, options.argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hostlerlab", description="real libvirt/QEMU hosts on one machine")
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="the lab's folder (default build/lab)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the lab up; joins a healthy one")
    up.add_argument("--hosts", type=int, default=DEFAULT_HOSTS)
    up.add_argument("--fresh", action="store_true", help="build anew even when a healthy lab is up")
    up.add_argument("--lockd", action="store_true", help="libvirt takes leases through virtlockd as well")
    commands.add_parser("down", help="remove everything the lab made")
    commands.add_parser("status", help="what is up, what is wrong, what is left over; exit 1 when not healthy")
    execute = commands.add_parser("exec", help="run a command inside a host: exec n1 -- virsh list")
    execute.add_argument("host")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    return parser


def _up(folder: Path, hosts: int, fresh: bool, lockd: bool) -> int:
    started = time.monotonic()
    lab = Lab(folder, default_specs(hosts, lockd=lockd))
    built = lab.up(fresh=fresh)
    for host in lab.hosts.values():
        caps = host.spec.caps
        print(f"{host.name}  {host.address}  cpu {caps.cpu_milli} milli  memory {caps.memory_mib} MiB  {host.libvirt_uri}")
    print(f"lab {'built' if built else 'joined'} in {time.monotonic() - started:.1f} s in {lab.folder}")
    return 0


def _down(folder: Path) -> int:
    started = time.monotonic()
    had = Lab(folder, ()).down()
    left = leftovers(folder)
    for line in left:
        print(f"left over: {line}")
    print(f"lab {'removed' if had else 'was not up'} in {time.monotonic() - started:.1f} s")
    return 1 if left else 0


def _status(folder: Path) -> int:
    if not (folder / "lab.json").exists() or not Lab.attach(folder).is_up():
        left = leftovers(folder)
        print("lab is down", *(f"left over: {line}" for line in left), sep="\n")
        return 1
    lab = Lab.attach(folder)
    for host in lab.hosts.values():
        print(f"{host.name}  {host.address}")
        for pid in sorted(host.space.cgroup.pids()):
            print(f"  {pid:>7}  {command_line(pid)[:120]}")
    problems = lab.problems()
    print("healthy" if not problems else "\n".join(f"problem: {p}" for p in problems))
    return 1 if problems else 0


def _exec(folder: Path, host: str, argv: list[str]) -> int:
    command = argv[1:] if argv[:1] == ["--"] else argv
    lab = Lab.attach(folder)
    if host not in lab.hosts:
        print(f"no host {host}; there are {', '.join(lab.hosts)}", file=sys.stderr)
        return 2
    inside = lab.hosts[host].space.argv(command or ["sh"], cwd=Path.cwd())
    os.execvp(inside[0], inside)


if __name__ == "__main__":
    sys.exit(main())
