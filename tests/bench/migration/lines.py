"""`lines.py ADDRESS OUT`: a TCP client of the Linux guest's numbered lines in a process of its own, until its stdin closes.

Its own process, because what is measured is the time between two lines: the one that drives the migrations must not be in the way of the client.
"""

import asyncio
import sys

from hostlerlab.guest import probe


async def listen(address: str, out: str) -> int:
    """0 if the connection stood to the end. A line per line: seconds (monotonic), number, boot id, the guest's milliseconds."""
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    client = probe.StreamClient(address)
    lost = ""

    async def run() -> None:
        nonlocal lost
        try:
            await client.run()
        except ConnectionError as error:
            lost = str(error)

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(run(), name="lines")
        await client.wait_lines(1)
        print("ready", flush=True)
        await told.read()
        client.stop()
        await reading
    with open(out, "w") as file:  # noqa: ASYNC230 nothing else runs any more
        file.writelines(f"{line.arrived_s:.6f} {line.seq} {line.boot_id} {line.guest_ms}\n" for line in client.lines)
    print(lost, flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(listen(sys.argv[1], sys.argv[2])))
