"""The program in the README, run as it stands there."""

import asyncio
import re
import sys
from pathlib import Path

from hostler.cluster import Cluster
from tests.rpc.sdk.conftest import CLI_S, Cli

README = Path(__file__).parents[3] / "README.md"


async def test_the_program_in_the_readme_runs(cli: Cli, sdk: Cluster) -> None:
    """An example that newcomers copy and that does not work."""
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    await sdk.create_flavor("small", vcpus=1, memory_mib=512)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        program,
        env=cli.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CLI_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err) == (0, b"")
    assert out.decode().strip() == (await sdk.get_vm("web-1")).node
