"""A command that is forked with its imports done (warm.py) is the command that a shell starts."""

import asyncio
import signal
import socket
from dataclasses import replace

import pytest

from tests.rpc.sdk.conftest import CLI_S, Cli, environment

NOBODY = ("--insecure", "--endpoint", "127.0.0.1:1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("vm", "create", "--help"),
        ("vm", "lst"),
        ("vm", "list"),
        (*NOBODY, "vm", "list"),
        ("version",),
        ("pki", "show", "--ca", "/nowhere"),
    ],
    ids=" ".join,
)
async def test_it_says_the_same_and_ends_the_same(arguments: tuple[str, ...]) -> None:
    """Tests that pass for a program that nobody runs."""
    cli = Cli(environment(HOSTLER_CALL_TIMEOUT="1"))
    warm, cold = await asyncio.gather(cli(*arguments), replace(cli, cold=True)(*arguments))
    assert warm == cold
    assert warm.out or warm.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_reaches_it_and_nobody_else(number: int) -> None:
    """A signal that ends the process it was forked from, and with it every test after this one."""
    cli = Cli(environment(HOSTLER_CALL_TIMEOUT="20"))
    async with asyncio.timeout(CLI_S):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            process = await cli.start("--insecure", "--endpoint", f"127.0.0.1:{silent.getsockname()[1]}", "vm", "list")
            process.send_signal(number)
            assert await process.wait() != 0
        assert (await cli("version")).status == 0
