"""Page tokens and resume tokens: opaque to clients, and bound to one history of changes and to the question they belong to.

A history is what revisions count in: a cluster's store since it was made or restored, or a node agent's memory since it was started. A token names
its history, so that a restored cluster, or a restarted agent, cannot go back in time for a client without its knowing. A page token also carries the
revision of the first page: pages of one list are of one moment, or the list says that it cannot go on.
"""

import base64
import hashlib

import msgspec

from hostler.errors import InvalidRequest, OutOfRange, Reason, Violation

DEFAULT_PAGE, MAX_PAGE = 100, 500


class PageToken(msgspec.Struct, frozen=True, array_like=True):
    """After which name to go on, at which revision, of which question."""

    history: str
    revision: int
    after: str
    question: str


class ResumeToken(msgspec.Struct, frozen=True, array_like=True):
    """Everything up to `revision` has been heard."""

    history: str
    revision: int


def page_size(asked: int) -> int:
    return min(asked, MAX_PAGE) if asked > 0 else DEFAULT_PAGE


def question(*parts: str) -> str:
    """A short name of what is listed, so that a token of one list is not used on another."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def encode(token: PageToken | ResumeToken) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def decode_page(text: str, history: str, asked: str) -> PageToken | None:
    """None for an empty token. Raises InvalidRequest."""
    if not text:
        return None
    try:
        token = msgspec.json.decode(_bytes(text), type=PageToken)
    except (ValueError, msgspec.DecodeError) as error:
        raise _wrong("page_token", "was not made by this list; begin without it") from error
    if token.history != history or token.question != asked:
        raise _wrong("page_token", "belongs to another list; begin without it")
    return token


def decode_resume(text: str, history: str, lost: Reason = Reason.REVISION_UNKNOWN) -> ResumeToken | None:
    """None for an empty token. Raises InvalidRequest, OutOfRange with the reason `lost` for a token of another history."""
    if not text:
        return None
    try:
        token = msgspec.json.decode(_bytes(text), type=ResumeToken)
    except (ValueError, msgspec.DecodeError) as error:
        raise _wrong("resume_token", "was not made by a watch or a list; begin without it") from error
    if token.history != history:
        raise OutOfRange(lost, "This token belongs to another history of changes than the one here.", "List again.")
    return token


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _wrong(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(Reason.PAGE_TOKEN_INVALID, f"{field}: {description}", violations=(Violation(field, description),))
