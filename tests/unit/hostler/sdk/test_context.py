"""Connections by name: which source counts, and what becomes of the file."""

import os
from pathlib import Path

import pytest

from hostler.context import Context, Contexts, file_path, load, save, variables
from hostler.errors import HostlerError, InvalidRequest, NotFound
from hostler.settings import settings

PROD = Context("10.0.0.1:7443,10.0.0.2:7443", "prod/tls.crt", "prod/tls.key", "/etc/hostler/ca.crt")
DEV = Context("127.0.0.1:7443", insecure=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with prod, the current one, and dev."""
    path = tmp_path / "etc" / "config.toml"
    save(path, Contexts().with_one("prod", PROD).with_one("dev", DEV))
    return path


def environment(path: Path, **more: str) -> dict[str, str]:
    return {"HOSTLER_CONFIG": str(path), **more}


def test_what_was_saved_is_loaded(path: Path) -> None:
    """A field that gets lost on the way to the file, or one that another user may change."""
    assert load(path) == Contexts("prod", {"prod": PROD, "dev": DEV})
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ['a"b\\c', "tab\there", "line\nbreak", "del\x7f", "naïve/日本.crt", "'''", "emoji 🐎"])
def test_any_text_survives_the_file(path: Path, text: str) -> None:
    """A path with a quote in it that makes the file unreadable, and with it every other context."""
    save(path, Contexts().with_one("odd", Context("h:1", cert=text)))
    assert load(path).get("odd").cert == text


def test_a_text_that_cannot_be_written_leaves_the_file_as_it_is(path: Path) -> None:
    """A file cut off in the middle."""
    with pytest.raises(InvalidRequest, match="no text"):
        save(path, Contexts().with_one("odd", Context("h:1", cert="\udcff")))
    assert load(path).current == "prod"


def test_the_current_context_counts_when_nothing_is_said(path: Path) -> None:
    """A user who chose a context and is told that no endpoint is set; a path that depends on where the program was started."""
    found = settings(environment=environment(path))
    assert found.endpoints == ("10.0.0.1:7443", "10.0.0.2:7443")
    assert (found.cert, found.key, found.ca) == (path.parent / "prod/tls.crt", path.parent / "prod/tls.key", Path("/etc/hostler/ca.crt"))
    assert not found.insecure


@pytest.mark.parametrize("variable", ["HOSTLER_ENDPOINT", "HOSTLER_CERT", "HOSTLER_INSECURE"])
def test_the_environment_counts_before_the_current_context_and_is_not_mixed_with_it(path: Path, variable: str) -> None:
    """A script for a test cluster that reaches production because one variable was forgotten."""
    env = environment(path, **{variable: "1"})
    assert variables(None, env) == env


def test_a_named_context_counts_before_the_environment_and_is_not_mixed_with_it(path: Path) -> None:
    """`--context dev` that still goes where the environment says, or with its certificate."""
    env = environment(path, HOSTLER_ENDPOINT="10.9.9.9:1", HOSTLER_CERT="x", HOSTLER_CALL_TIMEOUT="3")
    found = settings(context="dev", environment=env)
    assert (found.endpoints, found.insecure, found.cert, found.call_s) == (("127.0.0.1:7443",), True, None, 3.0)
    assert variables("dev", env)["HOSTLER_CERT"] == ""
    assert settings(environment=environment(path, HOSTLER_CONTEXT="dev")).insecure


def test_two_sources_at_once_are_refused(path: Path) -> None:
    """A guess at which cluster was meant."""
    with pytest.raises(InvalidRequest, match="HOSTLER_ENDPOINT too"):
        variables(None, environment(path, HOSTLER_CONTEXT="dev", HOSTLER_ENDPOINT="10.9.9.9:1"))


def test_whoever_names_a_certificate_gets_tls(path: Path) -> None:
    """A certificate that was given and is left aside in silence, because the surroundings say insecure."""
    found = settings(cert="a", key="b", ca="c", context="dev", environment=environment(path))
    assert (found.insecure, found.cert) == (False, Path("a"))


@pytest.mark.parametrize("file", ["cert", "key", "ca"])
def test_a_certificate_and_plain_text_are_refused_together(file: str) -> None:
    """A caller who names a certificate and talks in plain text all the same."""
    with pytest.raises(InvalidRequest, match="insecure is set together with a certificate"):
        settings("h:1", insecure=True, environment={}, **{file: "a"})  # type: ignore[arg-type]


def test_names_that_are_not_there(path: Path) -> None:
    """A typing error that is taken for the current context."""
    with pytest.raises(NotFound, match=r"no context prud.*dev, prod"):
        settings(context="prud", environment=environment(path))
    with pytest.raises(NotFound):
        load(path).using("prud")
    with pytest.raises(NotFound):
        load(path).without("prud")


def test_the_current_context_goes_with_its_deletion(path: Path) -> None:
    """A current context that is not there, which makes the file unusable."""
    save(path, load(path).without("prod"))
    assert load(path) == Contexts("", {"dev": DEV})
    save(path, load(path).using("dev"))
    assert load(path).current == "dev"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "unknown key x"),
        ("contexts = 1", "contexts is no table"),
        ("contexts.a = 1", "contexts.a is no table"),
        ("[contexts.a]\ncert = 'x'", "contexts.a.endpoint is missing"),
        ("[contexts.a]\nendpoint = 1", "contexts.a.endpoint has the wrong type"),
        ("[contexts.a]\nendpoint = 'h:1'\npassword = 'x'", "unknown key contexts.a.password"),
        ("[contexts.a]\nendpoint = 'h:1'\ninsecure = 'no'", "contexts.a.insecure has the wrong type"),
        ("[contexts.'A b']\nendpoint = 'h:1'", "'A b' is not 1 to 63"),
        ("current = 'a'", "current is 'a', which is not there"),
        ("[", "cannot be used"),
        ("#" * (1 << 20) + "#", "larger than"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_is_wrong(path: Path, text: str, told: str) -> None:
    """A mistake in the file that shows as a traceback, or that is overlooked."""
    path.write_text(text)
    with pytest.raises(HostlerError) as refused:
        load(path)
    assert isinstance(refused.value, InvalidRequest)
    assert told in str(refused.value)


def test_where_the_file_is() -> None:
    """A file that is not where the desktop's conventions and the documentation say."""
    assert file_path({"HOME": "/home/a"}) == Path("/home/a/.config/hostler/config.toml")
    assert file_path({"HOME": "/home/a", "XDG_CONFIG_HOME": "/x"}) == Path("/x/hostler/config.toml")
    assert file_path({"HOSTLER_CONFIG": "/c.toml", "XDG_CONFIG_HOME": "/x"}) == Path("/c.toml")
    assert load(Path(os.devnull)) == load(Path("/nowhere/at/all")) == Contexts()
