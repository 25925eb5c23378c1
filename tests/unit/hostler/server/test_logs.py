"""What a log line may show: everything bound to the call, no secret at any depth, one line per event."""

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
import structlog

from hostler.server import logs

KEY_PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"


@pytest.fixture
def stream() -> Iterator[StringIO]:
    root, out = logging.getLogger(), StringIO()
    handlers, level = root.handlers[:], root.level
    logs.configure(level="info", stream=out, as_json=True)
    yield out
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_bound_values_appear_in_our_lines_and_in_those_of_libraries(stream: StringIO) -> None:
    with structlog.contextvars.bound_contextvars(operation="op-1"):
        structlog.get_logger().info("placed", vm="web-1")
        logging.getLogger("grpc").warning("%s is odd", "this")
    ours, theirs = lines(stream)
    assert (ours["event"], ours["vm"], ours["operation"], ours["level"]) == ("placed", "web-1", "op-1", "info")
    assert (theirs["event"], theirs["logger"], theirs["operation"], theirs["level"]) == ("this is odd", "grpc", "op-1", "warning")


@pytest.mark.parametrize(
    "values",
    [
        {"password": "hunter2"},
        {"vnc_password": "hunter2"},
        {"request": {"spec": [{"api_token": "hunter2"}]}},
        {"user_data": "#cloud-config hunter2"},
        {"authorization": ["hunter2"]},
        {"private_key": "hunter2"},
        {"note": f"hunter2 {KEY_PEM}"},
        {"deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": "hunter2"}}}}}}}},
        {"raw": b"hunter2"},
    ],
)
def test_secrets_never_reach_the_log(stream: StringIO, values: dict[str, object]) -> None:
    structlog.get_logger().info("x", **values)
    assert "hunter2" not in stream.getvalue()
    assert len(lines(stream)) == 1


def test_a_private_key_in_a_traceback_is_removed(stream: StringIO) -> None:
    try:
        raise ValueError(KEY_PEM)
    except ValueError as err:
        structlog.get_logger().error("broke", exc_info=err)
        logging.getLogger("lib").exception("broke")
    assert "MHcCAQEE" not in stream.getvalue()


def test_no_value_can_forge_a_line_or_fill_the_disk(stream: StringIO) -> None:
    structlog.get_logger().info("x", name='web\n{"event":"forged"}', big="a" * 1_000_000)
    assert len(lines(stream)) == 1
    assert len(stream.getvalue()) < 2 * logs.MAX_STRING_CHARS


def test_levels_are_kept_and_unknown_ones_refused(stream: StringIO) -> None:
    structlog.get_logger().debug("quiet")
    assert stream.getvalue() == ""
    with pytest.raises(ValueError, match="unknown log level"):
        logs.configure(level="loud")


def test_a_terminal_gets_the_readable_form(stream: StringIO) -> None:
    out = StringIO()
    logs.configure(stream=out, as_json=False)
    structlog.get_logger().info("placed", token="hunter2")
    assert "placed" in out.getvalue()
    assert "hunter2" not in out.getvalue()
    assert not out.getvalue().startswith("{")
