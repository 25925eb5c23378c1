"""A process that holds one byte of a file locked, as QEMU holds an image, until it is killed: the end of a probe that has to die.

Run by path with `python -I -S`, so it imports nothing of ours. Arguments: the number of an open directory, and the file's name in it. Says "held" or
"refused". It ends when its standard input does (the agent is gone), and after HOLD_S whatever happens.
"""

import fcntl
import os
import signal
import struct
import sys

HOLD_S = 30
F_OFD_SETLK = 37
"""Of linux/fcntl.h; Python's fcntl module has the name from 3.12 on only."""
PROBED_BYTE = 101
"""The byte that QEMU locks to write; `pool_directory` asks for the same."""


def main() -> int:
    folder, name = int(sys.argv[1]), sys.argv[2]
    signal.alarm(HOLD_S)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(name, flags, 0o600, dir_fd=folder)
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, PROBED_BYTE, 1, 0))
    except OSError:
        print("refused", flush=True)
        return 1
    print("held", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
