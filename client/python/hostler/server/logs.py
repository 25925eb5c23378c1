"""One log stream per daemon: JSON lines on stdout (a console form on a terminal), for our own events and for libraries that use `logging`.

Values bound with `structlog.contextvars` (rpc id, principal, operation) appear in every line of that task. The last step before rendering
removes secrets by key and private keys by their PEM header, at any depth, and cuts long strings: what reaches a log may be read by anybody.
JSON escapes line breaks, so no value can forge a line.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

REDACTED = "[redacted]"
MAX_STRING_CHARS = 8192
"""Longer than any traceback worth reading; bounds what one hostile field can write."""
MAX_DEPTH = 6
"""Nested deeper, a value is shown by its type only."""

_SECRET_KEY = re.compile(
    r"passw|passphrase|secret|token(?!_count)|private_?key|key_pem|credential|authorization|cookie|ticket|user_?data|vnc_pw", re.IGNORECASE
)
_PRIVATE_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor that removes secrets."""
    return {key: _shown(key, value, 0) for key, value in event.items()}


def _shown(key: str, value: Any, depth: int) -> Any:  # noqa: ANN401 log values are of any type
    if _SECRET_KEY.search(key):
        return REDACTED
    match value:
        case str():
            return _shown_text(value)
        case None | bool() | int() | float():
            return value
        case _ if depth >= MAX_DEPTH:
            return f"<{type(value).__name__}>"
        case Mapping():
            return {str(k): _shown(str(k), v, depth + 1) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_shown("", v, depth + 1) for v in value]
        case bytes():
            return f"<{len(value)} bytes>"
    return _shown_text(str(value))


def _shown_text(text: str) -> str:
    if _PRIVATE_PEM.search(text):
        return REDACTED
    return text if len(text) <= MAX_STRING_CHARS else f"{text[:MAX_STRING_CHARS]}… ({len(text)} characters)"


def configure(*, level: str = "info", stream: TextIO | None = None, as_json: bool | None = None) -> None:
    """Set up structlog and `logging` for this process. `as_json` None: JSON unless the stream is a terminal.

    `level` is debug, info, warning or error (ValueError).
    """
    out = stream if stream is not None else sys.stdout
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}; use debug, info, warning or error")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    last = _rendering(as_json if as_json is not None else not out.isatty())
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    foreign: list[Processor] = [*shared, structlog.stdlib.add_logger_name]
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=foreign, processors=[strip, *last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries' debugging (gRPC notes every look at the loop) is never what is wanted.
    root.setLevel(max(number, logging.INFO))


def _rendering(as_json: bool) -> list[Processor]:
    if as_json:
        dumps = structlog.processors.JSONRenderer(serializer=json.dumps, ensure_ascii=False)
        return [structlog.processors.StackInfoRenderer(), structlog.processors.format_exc_info, redact, dumps]
    return [structlog.processors.format_exc_info, redact, structlog.dev.ConsoleRenderer()]
