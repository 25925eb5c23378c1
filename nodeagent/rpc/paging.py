"""Pages of a ring: every page is of the first one's revision, or the list says that it cannot go on."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from hostler.errors import OutOfRange, Reason
from hostler.server.tokens import PageToken, ResumeToken, decode_page, decode_resume, encode, page_size, question
from nodeagent.engine.watch import Ring

T = TypeVar("T")


def page(
    ring: Ring[T], size: int, token_text: str, names: Callable[[Mapping[str, T]], Iterable[str]], *asked: str
) -> tuple[list[T], str, int]:
    """The things of one page, the next page's token, and the revision of the list. `names` puts them in order; `asked` tells lists apart.

    Raises InvalidRequest, OutOfRange.
    """
    about = question(*asked)
    token = decode_page(token_text, ring.history, about)
    revision = ring.revision if token is None else token.revision
    things = ring.at(revision)
    ordered = list(names(things))
    begin = 0
    if token is not None:
        if token.after not in things:
            raise OutOfRange(Reason.REVISION_UNKNOWN, "This list cannot go on from there.", "List again from the first page.")
        begin = ordered.index(token.after) + 1
    found = ordered[begin : begin + page_size(size)]
    more = begin + len(found) < len(ordered)
    next_token = encode(PageToken(ring.history, revision, found[-1], about)) if more else ""
    return [things[name] for name in found], next_token, revision


def resume_token(ring: Ring[T], revision: int) -> str:
    return encode(ResumeToken(ring.history, revision))


def resume_revision(ring: Ring[T], token_text: str) -> int | None:
    """None for an empty token. A token from before the agent's last start is too old. Raises InvalidRequest, OutOfRange."""
    token = decode_resume(token_text, ring.history, lost=Reason.REVISION_COMPACTED)
    return None if token is None else token.revision
