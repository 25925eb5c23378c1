"""A libvirtd that hangs again and again, and the process that asks it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from hostlerlab import faults
from hostlerlab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

TIMES = 3
"""Before a call had its connection to itself, the client was harmed in each of them."""
SAID_S = 30.0


async def until_said(looking: Process, word: str) -> None:
    assert looking.stdout is not None
    async with asyncio.timeout(SAID_S):
        while line := (await looking.stdout.readline()).decode().strip():
            if line == word:
                return
    raise AssertionError(f"the process that asks libvirtd has ended ({await looking.wait()}): {(await looking.communicate())[1].decode()}")


async def test_a_libvirtd_that_hangs_never_harms_who_asks_it(lab: Lab) -> None:
    """An agent that ends by SIGSEGV, or writes into its own stack: libvirt's client before 10.3 does when two threads share a connection."""
    host = lab.hosts["n1"]
    program = (sys.executable, str(Path(__file__).with_name("looking.py")), host.libvirt_uri)
    strict = {**os.environ, "G_DEBUG": "fatal-criticals"}
    looking = await asyncio.create_subprocess_exec(*program, stdout=PIPE, stderr=PIPE, env=strict)
    try:
        for _ in range(TIMES):
            await until_said(looking, "answered")
            with faults.frozen(host.daemon_process("libvirtd")):
                await until_said(looking, "hung")
        await until_said(looking, "answered")
    finally:
        if looking.returncode is None:
            looking.kill()
        await looking.wait()
