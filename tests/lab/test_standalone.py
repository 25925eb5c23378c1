"""One real host without scheduler and etcd, commanded with `hostler`: virsh, the guest and the pool's directory are the witnesses."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hostlerlab.cluster import LoneHost, lone_host
from hostlerlab.guest import probe
from hostlerlab.hosts import LOCAL_POOL
from hostlerlab.lab import Lab
from hostlerlab.ready import ready_lab
from hostlerlab.supervisor import State

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
COMMAND_S = 120.0
BOOT_S = 60.0
READY_S = 60.0
ROOM_MIB = 1024
"""What the agent is told to offer of its host's memory."""


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Stage:
    lab: Lab
    host: LoneHost

    async def hostler(self, *arguments: str) -> Ran:
        """The installed command, asking this host."""
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("hostler"),
            *arguments,
            env=os.environ | self.host.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(COMMAND_S):
            out, err = await process.communicate()
        return Ran(process.returncode or 0, out.decode(), err.decode())

    async def vm(self, name: str) -> Any:  # noqa: ANN401
        ran = await self.hostler("vm", "get", name, "-o", "json")
        assert ran.status == 0, ran.err
        return json.loads(ran.out)

    def domains(self) -> list[str]:
        """UUIDs of what runs, by libvirt's word."""
        return self.host.host.virsh("list", "--uuid").split()

    def files(self) -> list[str]:
        """Volumes in the host's own pool."""
        return self.host.host.run(["ls", str(LOCAL_POOL / "volumes")]).stdout.split()


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    folder = Path("build").resolve()  # noqa: ASYNC240 once, before anything runs
    lab = await asyncio.to_thread(ready_lab, folder, 1, LOCAL_POOL)
    async with lone_host(lab.hosts["n1"], folder / "lab-host") as lone:
        yield Stage(lab, lone)


CREATE = ("vm", "create", "solo-1", "--vcpus", "1", "--memory", "128", "--image", "guest", "--pool", "local", "--network", "br0")


async def test_a_vm_on_one_host_over_a_restart_of_its_agent(stage: Stage) -> None:
    """A host that needs a scheduler, or whose guest is disturbed or forgotten when the agent is killed."""
    made = await stage.hostler(*CREATE)
    assert made.status == 0, made.err
    vm = await stage.vm("solo-1")
    assert stage.domains() == [vm["uid"]]
    address = await asyncio.to_thread(stage.lab.wait_for_lease, vm["nics"][0]["mac_address"], BOOT_S)
    await probe.wait_answer(address)
    before = await probe.ask(address)

    supervisor, name = stage.host.supervisor, stage.host.host.name
    starts = len([change for change in supervisor.transitions(name) if change.state is State.ACTIVE])
    supervisor.send_signal(name, signal.SIGKILL)
    await supervisor.wait_for_state(name, State.ACTIVE, READY_S, starts=starts + 1)
    assert (await stage.vm("solo-1"))["state"] == "RUNNING"
    assert (await probe.ask(address)).boot_id == before.boot_id

    stopped = await stage.hostler("vm", "stop", "solo-1", "--grace", "30")
    assert (stopped.status, stage.domains()) == (0, []), stopped.err
    started = await stage.hostler("vm", "start", "solo-1")
    assert started.status == 0, started.err
    await probe.wait_answer(address)
    after = await probe.ask(address)
    assert after.boot_id != before.boot_id
    assert after.disk_counter > before.disk_counter, "the disk was not the same one"

    deleted = await stage.hostler("vm", "delete", "solo-1", "--force")
    assert (deleted.status, stage.domains(), stage.files()) == (0, [], []), deleted.err


async def test_one_host_refuses_what_it_does_not_have(stage: Stage) -> None:
    """A host that starts what does not fit, or that answers a wrong wish with half a VM."""
    for arguments, status, says in (
        (("--memory", str(ROOM_MIB)), 5, "memory short by"),
        (("--image", "none"), 3, "no image none"),
        (("--network", "br9"), 3, "br9"),
        (("--pool", "far"), 3, "no pool far"),
    ):
        refused = await stage.hostler(*CREATE, *arguments)
        assert refused.status == status, refused
        assert says in refused.err, refused.err
        assert "Traceback" not in refused.err
    assert (stage.domains(), stage.files()) == ([], [])
    listed = await stage.hostler("vm", "list", "-o", "json")
    assert json.loads(listed.out) == []
