"""Named connections, kept in one file per user, so that nobody has to export five variables to change clusters.

    current = "prod"

    [contexts.prod]
    endpoint = "10.0.0.1:7400,10.0.0.2:7400"
    cert = "prod/tls.crt"
    key = "prod/tls.key"
    ca = "prod/ca.crt"

    [contexts.h1]
    node_endpoint = "h1@10.0.0.11:7500"
    ...

A context with `endpoint` is a cluster, one with `node_endpoint` a single host that runs standalone. The file is `$HOSTLER_CONFIG`, else
`hostler/config.toml` under `$XDG_CONFIG_HOME` or `~/.config`; paths in it are relative to it. It holds no secret. What a caller does not give comes
from one source, never from two: the context that the caller names, else the one in HOSTLER_CONTEXT, else the other HOSTLER_ variables if any is set,
else the file's current context.
"""

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hostler.errors import InvalidRequest, NotFound, Reason, Violation

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
CONNECTION = ("HOSTLER_ENDPOINT", "HOSTLER_NODE_ENDPOINT", "HOSTLER_CERT", "HOSTLER_KEY", "HOSTLER_CA", "HOSTLER_INSECURE")
"""The variables that say where the cluster, or the host, is and who we are."""
MAX_FILE_BYTES = 1 << 20
"""Thousands of contexts; a larger file is a mistake."""


@dataclass(frozen=True, slots=True)
class Context:
    """One connection: `endpoint` or `node_endpoint` as in HOSTLER_ENDPOINT and HOSTLER_NODE_ENDPOINT, PEM files; or `insecure` and no files."""

    endpoint: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""
    insecure: bool = False
    node_endpoint: str = ""

    def variables(self, directory: Path) -> dict[str, str]:
        """The HOSTLER_ variables that mean the same; paths are relative to `directory`."""
        files = {"CERT": self.cert, "KEY": self.key, "CA": self.ca}
        found = {f"HOSTLER_{name}": str(directory / Path(path).expanduser()) for name, path in files.items() if path}
        where = {"HOSTLER_ENDPOINT": self.endpoint, "HOSTLER_NODE_ENDPOINT": self.node_endpoint}
        return {**where, "HOSTLER_INSECURE": "1" if self.insecure else "", **found}


@dataclass(frozen=True, slots=True)
class Contexts:
    """The file's content; `current` is empty or one of the names."""

    current: str = ""
    by_name: Mapping[str, Context] = field(default_factory=dict)

    def with_one(self, name: str, context: Context) -> "Contexts":
        """With `name` made or replaced; the first one becomes the current one."""
        if not NAME.fullmatch(name):
            raise _refused("name", f"{name!r} is not 1 to 63 characters a-z, 0-9 and -, beginning with a letter")
        return Contexts(self.current or name, {**self.by_name, name: context})

    def without(self, name: str) -> "Contexts":
        self.get(name)
        kept = {other: context for other, context in self.by_name.items() if other != name}
        return Contexts("" if self.current == name else self.current, kept)

    def using(self, name: str) -> "Contexts":
        self.get(name)
        return replace(self, current=name)

    def get(self, name: str) -> Context:
        """Raises NotFound."""
        found = self.by_name.get(name)
        if found is None:
            there = ", ".join(sorted(self.by_name)) or "none"
            raise NotFound(Reason.FIELD_INVALID, f"There is no context {name}.", f"There are: {there}. See `hostler context list`.")
        return found


def file_path(environment: Mapping[str, str]) -> Path:
    """Where the contexts are kept, whether or not the file exists."""
    if given := environment.get("HOSTLER_CONFIG"):
        return Path(given)
    base = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "~").expanduser() / ".config"
    return Path(base) / "hostler" / "config.toml"


def variables(name: str | None, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The HOSTLER_ variables of the one source that counts; see above. Raises InvalidRequest, NotFound."""
    wanted, set_ = name or environment.get("HOSTLER_CONTEXT", ""), [one for one in CONNECTION if environment.get(one)]
    if set_ and not name:
        if wanted:
            raise _refused("context", f"HOSTLER_CONTEXT is set, and {set_[0]} too; unset one of them")
        return environment
    path = file_path(environment)
    contexts = load(path)
    if not (wanted or contexts.current):
        return environment
    return {**environment, **dict.fromkeys(CONNECTION, ""), **contexts.get(wanted or contexts.current).variables(path.parent)}


def means_one_host(name: str | None, environment: Mapping[str, str]) -> bool:
    """Whether that source leads to a single host rather than to a cluster. Raises as `variables`; InvalidRequest if it names both."""
    found = variables(name, environment)
    if found.get("HOSTLER_ENDPOINT") and found.get("HOSTLER_NODE_ENDPOINT"):
        raise _refused("endpoint", "HOSTLER_ENDPOINT and HOSTLER_NODE_ENDPOINT are both set; unset one of them")
    return bool(found.get("HOSTLER_NODE_ENDPOINT"))


def load(path: Path) -> Contexts:
    """What the file says; nothing if there is none. Raises InvalidRequest if it cannot be used."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise _refused(str(path), f"is larger than {MAX_FILE_BYTES} bytes")
        return _contexts(tomllib.loads(raw.decode()))
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise _refused(str(path), f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _refused(str(path), f"cannot be used: {error}") from error


def save(path: Path, contexts: Contexts) -> None:
    """Replace the file at once: a reader sees the old or the new one. Raises InvalidRequest."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = _toml(contexts).encode()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".config-", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise _refused(str(path), f"cannot be written ({error.strerror})") from error
    except UnicodeEncodeError as error:
        raise _refused(str(path), "cannot be written: a path in it is no text") from error


def _contexts(document: Mapping[str, Any]) -> Contexts:
    if unknown := set(document) - {"current", "contexts"}:
        raise ValueError(f"unknown key {min(unknown)}")
    contexts = Contexts()
    for name, fields in _table("contexts", document.get("contexts", {})).items():
        contexts = contexts.with_one(name, _context(f"contexts.{name}", _table(f"contexts.{name}", fields)))
    current = document.get("current", "")
    if current not in ("", *contexts.by_name):
        raise ValueError(f"current is {current!r}, which is not there")
    return replace(contexts, current=current)


def _context(where: str, fields: Mapping[str, Any]) -> Context:
    for key, value in fields.items():
        if key not in Context.__slots__:
            raise ValueError(f"unknown key {where}.{key}")
        if not isinstance(value, bool if key == "insecure" else str):
            raise ValueError(f"{where}.{key} has the wrong type")
    if not (fields.get("endpoint") or fields.get("node_endpoint")):
        raise ValueError(f"{where}.endpoint is missing")
    if fields.get("endpoint") and fields.get("node_endpoint"):
        raise ValueError(f"{where} has both endpoint and node_endpoint")
    return Context(**fields)


def _table(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no table")
    return value


def _toml(contexts: Contexts) -> str:
    lines = [f"current = {_quoted(contexts.current)}"]
    for name, context in sorted(contexts.by_name.items()):
        lines += ["", f"[contexts.{name}]"]
        given = {key: value for key, value in asdict(context).items() if value}
        lines += [f"{key} = {'true' if value is True else _quoted(value)}" for key, value in given.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are all TOML's too, except that DEL must be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _refused(what: str, problem: str) -> InvalidRequest:
    return InvalidRequest(Reason.FIELD_INVALID, f"{what}: {problem}.", violations=(Violation(what, problem),))
