"""A terminal to look at: a pseudo terminal whose other end draws what arrives on a screen of so many columns, wraps as a real one does, and
knows the few control sequences that Hostler sends. Any other sequence is an error, so that a test sees what a person would.
"""

import asyncio
import os
import re
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SEQUENCE = re.compile(r"\x1b\[(?P<arguments>[0-9;?]*)(?P<letter>[A-Za-z])")
CHUNK = 1 << 14


class Screen:
    """What is to be seen: `lines`, without trailing blanks. `sequences`: what was sent besides text."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._row, self._column = 0, 0
        self.sequences: list[str] = []

    @property
    def lines(self) -> list[str]:
        shown = ["".join(line).rstrip() for line in self._lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            if text[position] == "\x1b":
                found = SEQUENCE.match(text, position)
                assert found, f"an unknown sequence: {text[position : position + 12]!r}"
                self._control(found["letter"], found["arguments"])
                self.sequences.append(found[0])
                position = found.end()
            else:
                self._put(text[position])
                position += 1

    def _control(self, letter: str, arguments: str) -> None:
        known = letter == "m" or (letter, arguments) in (("K", ""), ("J", "")) or (letter == "A" and arguments.isdigit())
        assert known, f"an unknown sequence: {letter} {arguments}"
        if letter == "A":
            assert int(arguments) <= self._row, "up, out of the screen"
            self._row -= int(arguments)
        if letter in "KJ":
            del self._lines[self._row][self._column :]
        if letter == "J":
            del self._lines[self._row + 1 :]

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._next_row()
        else:
            assert character.isprintable(), f"an unknown character: {character!r}"
            if self._column == self._columns:
                self._next_row()
                self._column = 0
            line = self._lines[self._row]
            line.extend(" " * (self._column + 1 - len(line)))
            line[self._column] = character
            self._column += 1

    def _next_row(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append([])


class Terminal:
    """`program_end`: the file descriptor that a program writes to."""

    def __init__(self, columns: int) -> None:
        self._ours, self.program_end = os.openpty()
        termios.tcsetwinsize(self.program_end, (30, columns))
        self.screen = Screen(columns)
        self._left_over = b""
        self._arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    async def until(self, text: str) -> None:
        """Return when some line has it."""
        while not any(text in line for line in self.screen.lines):
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        for end in (self._ours, self.program_end):
            os.close(end)

    def _read(self) -> None:
        data = self._left_over + os.read(self._ours, CHUNK)
        # A character or a sequence may be cut in two.
        whole = data[: data.rfind(b"\x1b")] if re.search(rb"\x1b(\[[0-9;?]*)?$", data) else data
        while whole and not _decodes(whole):
            whole = whole[:-1]
        self._left_over = data[len(whole) :]
        self.screen.feed(whole.decode())
        self._arrived.set()


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@asynccontextmanager
async def terminal(columns: int) -> AsyncIterator[Terminal]:
    shown = Terminal(columns)
    try:
        yield shown
    finally:
        shown.close()
