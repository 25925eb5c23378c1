"""Settings: a frozen dataclass filled from a TOML file and environment variables, refused as a whole if anything in it is not understood.

Tables are nested dataclasses. An environment variable `<PREFIX><FIELD>` or `<PREFIX><TABLE>__<FIELD>` wins over the file; lists are comma
separated there. An unknown key or variable of our prefix is an error that names the closest known one, because a misspelt limit that is
silently ignored is found only when the limit was needed. A field's own rules belong in `__post_init__` (ValueError with a sentence).
Every failure is a `SettingsError` of one line that says where.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hostler.server.startup import EXIT_SETTINGS, StartupError, one_line

MAX_FILE_BYTES = 1 << 20
"""A settings file is a few KiB; a path that leads to something else is noticed at once."""

T = TypeVar("T")


class SettingsError(StartupError):
    """The settings cannot be used."""

    exit_code = EXIT_SETTINGS


def load(cls: type[T], path: Path | None, *, environ: Mapping[str, str], env_prefix: str) -> T:
    """Read `path` (None: only defaults and environment) into `cls`. `env_prefix` such as "HOSTLER_AGENT_". Raises SettingsError."""
    where = str(path) if path is not None else "settings"
    tree = _read(path) if path is not None else {}
    _refuse_unknown(cls, tree, where, "")
    for variable in sorted(environ):
        if variable.startswith(env_prefix):
            _override(cls, tree, variable, variable.removeprefix(env_prefix), environ[variable])
    return _convert(tree, cls, where)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise SettingsError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is not a settings file")
        return tomllib.loads(raw.decode())
    except OSError as err:
        raise SettingsError(f"{path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path}: not TOML: {one_line(str(err))}") from err


def _fields(cls: Any) -> dict[str, Any]:  # noqa: ANN401 any dataclass type
    """Field name to type, annotations resolved."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _refuse_unknown(cls: Any, tree: object, where: str, at: str) -> None:  # noqa: ANN401 any type in an annotation
    """Walk dataclasses, and lists and maps of them, beside the data."""
    inner = _bare(cls)
    args = typing.get_args(inner)
    if isinstance(tree, dict) and dataclasses.is_dataclass(inner):
        known = _fields(inner)
        for key, value in tree.items():
            if key not in known:
                raise SettingsError(f"{where}: unknown setting {at}{key}{_closest(key, list(known))}")
            _refuse_unknown(known[key], value, where, f"{at}{key}.")
    elif isinstance(tree, dict) and len(args) == 2:
        for key, value in tree.items():
            _refuse_unknown(args[1], value, where, f"{at}{key}.")
    elif isinstance(tree, list) and args:
        for index, value in enumerate(tree):
            _refuse_unknown(args[0], value, where, f"{at.removesuffix('.')}[{index}].")


def _bare(cls: Any) -> Any:  # noqa: ANN401 any type in an annotation
    """`X` of `X | None`."""
    if typing.get_origin(cls) in (types.UnionType, typing.Union):
        rest = [arg for arg in typing.get_args(cls) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else cls
    return cls


def _closest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"


def _override(cls: Any, tree: dict[str, Any], variable: str, rest: str, text: str) -> None:  # noqa: ANN401 any dataclass type
    """Put the value of one variable into the tree, at the path its name spells."""
    names = rest.lower().split("__")
    for depth, name in enumerate(names):
        known = _fields(cls) if dataclasses.is_dataclass(cls) else {}
        if name not in known:
            spelt = ["__".join((*names[:depth], k)).upper() for k in known]
            raise SettingsError(f"{variable}: unknown setting{_closest(rest, spelt)}")
        cls = _bare(known[name])
        if depth < len(names) - 1:
            below = tree.setdefault(name, {})
            if not isinstance(below, dict):
                raise SettingsError(f"{variable}: {name} is not a table")
            tree = below
    tree[names[-1]] = _from_text(cls, variable, text)


def _from_text(cls: Any, variable: str, text: str) -> object:  # noqa: ANN401 any type in an annotation
    """What TOML would have given for this text: numbers and booleans parsed, lists split at commas, text left alone."""
    value: object = text
    if cls is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif typing.get_origin(cls) in (tuple, list, frozenset):
        value = [part.strip() for part in text.split(",") if part.strip()]
    try:
        # Not strict: "7070" is a number here. The result is plain data again, converted with all the rest.
        return msgspec.to_builtins(msgspec.convert(value, cls, strict=False, dec_hook=_decode), enc_hook=str)
    except msgspec.ValidationError as err:
        raise SettingsError(f"{variable}: {_said(err)[1]}") from err


def _convert(tree: dict[str, Any], cls: type[T], where: str) -> T:
    try:
        return msgspec.convert(tree, cls, dec_hook=_decode)
    except msgspec.ValidationError as err:
        at, what = _said(err)
        raise SettingsError(f"{where}: {at}: {what}" if at else f"{where}: {what}") from err


def _decode(cls: type[Any], value: object) -> object:
    """The types TOML has no word for."""
    if cls is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected {cls.__name__}")


def _said(err: msgspec.ValidationError) -> tuple[str, str]:
    """Where and what, out of "Expected `int`, got `str` - at `$.listen.port`"."""
    what, _, at = one_line(str(err)).rpartition(" - at `")
    if not what:
        what, at = at, ""
    return at.rstrip("`").removeprefix("$").removeprefix("."), (what[:1].lower() + what[1:]).replace("`", "")
