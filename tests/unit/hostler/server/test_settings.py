"""Settings: what is not understood is refused in one line that names the place; the environment wins over the file."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest

from hostler.server.settings import SettingsError, load


class Mode(StrEnum):
    CLUSTER = "cluster"
    STANDALONE = "standalone"


@dataclass(frozen=True, slots=True)
class Listen:
    address: str = "127.0.0.1:7070"
    tls_dir: Path | None = None
    max_calls: int = 100

    def __post_init__(self) -> None:
        if self.max_calls < 1:
            raise ValueError("max_calls must be at least 1")


@dataclass(frozen=True, slots=True)
class Pool:
    path: Path
    size_mib: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    node: str
    mode: Mode = Mode.CLUSTER
    listen: Listen = field(default_factory=Listen)
    schedulers: tuple[str, ...] = ()
    pools: dict[str, Pool] = field(default_factory=dict)
    mirrors: tuple[Pool, ...] = ()
    beat_s: float = 2.0
    debug: bool = False


def read(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load(Settings, path, environ=environ, env_prefix="HOSTLER_AGENT_")


def test_a_file_becomes_typed_values(tmp_path: Path) -> None:
    text = """
        node = "n1"
        mode = "standalone"
        schedulers = ["a:1", "b:2"]
        beat_s = 3
        [listen]
        tls_dir = "/etc/hostler"
        [pools.fast]
        path = "/srv"
        [[mirrors]]
        path = "/m"
        size_mib = 5
    """
    assert read(tmp_path, text) == Settings(
        "n1",
        Mode.STANDALONE,
        Listen(tls_dir=Path("/etc/hostler")),
        ("a:1", "b:2"),
        {"fast": Pool(Path("/srv"))},
        (Pool(Path("/m"), 5),),
        3.0,
    )


def test_the_environment_wins_and_other_peoples_variables_are_left_alone(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        'node = "n1"\n[listen]\nmax_calls = 7',
        HOSTLER_AGENT_NODE="n2",
        HOSTLER_AGENT_LISTEN__MAX_CALLS="9",
        HOSTLER_AGENT_LISTEN__TLS_DIR="/tls",
        HOSTLER_AGENT_SCHEDULERS="a:1, b:2",
        HOSTLER_AGENT_DEBUG="true",
        HOSTLER_AGENT_BEAT_S="0.5",
        HOSTLER_AGENT_MODE="standalone",
        HOSTLER_ENDPOINT="elsewhere",
        PATH="/bin",
    )
    assert settings == Settings("n2", Mode.STANDALONE, Listen(tls_dir=Path("/tls"), max_calls=9), ("a:1", "b:2"), beat_s=0.5, debug=True)


def test_without_a_file_defaults_and_environment_do() -> None:
    environ = {"HOSTLER_AGENT_NODE": "n1"}
    assert load(Settings, None, environ=environ, env_prefix="HOSTLER_AGENT_") == Settings("n1")


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ('node = "n1"\nscheduler = []', {}, r"agent.toml: unknown setting scheduler; did you mean schedulers\?$"),
        ('node = "n1"\n[listen]\nadress = "x"', {}, r"agent.toml: unknown setting listen.adress; did you mean address\?$"),
        ('node = "n1"\n[pools.fast]\npath = "/x"\nsize = 3', {}, r"unknown setting pools.fast.size; did you mean size_mib\?$"),
        ('node = "n1"\n[[mirrors]]\npath = "/x"\nzzz = 3', {}, r"unknown setting mirrors\[0\].zzz; known here: path, size_mib$"),
        ("node = 3", {}, r"agent.toml: node: expected str, got int$"),
        ('node = "n1"\n[listen]\nmax_calls = "many"', {}, r"agent.toml: listen.max_calls: expected int, got str$"),
        ('node = "n1"\n[listen]\nmax_calls = true', {}, r"agent.toml: listen.max_calls: expected int, got bool$"),
        ('node = "n1"\n[listen]\nmax_calls = 0', {}, r"agent.toml: listen: max_calls must be at least 1$"),
        ('node = "n1"\nmode = "clutser"', {}, r"agent.toml: mode: invalid enum value 'clutser'$"),
        ('node = "n1"\nlisten = 3', {}, r"agent.toml: listen: expected object, got int$"),
        ("", {}, r"agent.toml: object missing required field node$"),
        ("node = ", {}, r"agent.toml: not TOML: "),
        ('node = "n1"', {"HOSTLER_AGENT_NOED": "x"}, r"^HOSTLER_AGENT_NOED: unknown setting; did you mean NODE\?$"),
        (
            'node = "n1"',
            {"HOSTLER_AGENT_LISTEN__ADRESS": "x"},
            r"^HOSTLER_AGENT_LISTEN__ADRESS: unknown setting; did you mean LISTEN__ADDRESS\?$",
        ),
        ('node = "n1"', {"HOSTLER_AGENT_LISTEN__MAX_CALLS": "many"}, r"^HOSTLER_AGENT_LISTEN__MAX_CALLS: expected int, got str$"),
        ('node = "n1"', {"HOSTLER_AGENT_DEBUG": "maybe"}, r"^HOSTLER_AGENT_DEBUG: expected bool, got str$"),
        ('node = "n1"', {"HOSTLER_AGENT_NODE__X": "x"}, r"^HOSTLER_AGENT_NODE__X: node is not a table$"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, text: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read(tmp_path, text, **environ)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing.toml: No such file"):
        load(Settings, tmp_path / "missing.toml", environ={}, env_prefix="X_")
    with pytest.raises(SettingsError, match="not a settings file"):
        load(Settings, Path("/dev/zero"), environ={}, env_prefix="X_")
    (tmp_path / "bin").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not TOML"):
        load(Settings, tmp_path / "bin", environ={}, env_prefix="X_")
