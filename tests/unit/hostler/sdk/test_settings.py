"""A single host's settings: whom the certificate must name, which source counts, and what is refused before anything is dialled."""

from pathlib import Path
from typing import Any

import pytest

from hostler.context import Context, Contexts, load, means_one_host, save
from hostler.errors import InvalidRequest
from hostler.server.identity import SCHEDULER_DNS_NAME, Principal, PrincipalKind
from hostler.settings import node_settings, settings

NOTHING = {"HOSTLER_CONFIG": "/dev/null"}
FILES: dict[str, Any] = {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with attic, a host and the current one, and prod, a cluster."""
    path = tmp_path / "config.toml"
    attic = Context(cert="a.crt", key="a.key", ca="ca.crt", node_endpoint="h1@10.0.0.11:7500")
    save(path, Contexts().with_one("attic", attic).with_one("prod", Context("10.0.0.1:7400", insecure=True)))
    return path


def test_the_certificate_must_be_the_node_s() -> None:
    """An answer believed from whoever is at the address; or a name that no node's certificate bears."""
    found = node_settings("h1@10.0.0.11:7500", environment=NOTHING, **FILES)
    assert (found.endpoints, found.server_name) == (("10.0.0.11:7500",), Principal("c", PrincipalKind.NODE, "h1").dns_name)
    assert (found.one_host, found.where) == (True, "h1@10.0.0.11:7500")
    by_address = node_settings("attic.example.org:7500", environment=NOTHING, **FILES)
    assert (by_address.server_name, by_address.one_host, by_address.where) == ("", True, "attic.example.org:7500")
    cluster = settings("a:1,b:2", environment=NOTHING, **FILES)
    assert (cluster.server_name, cluster.one_host, cluster.where) == (SCHEDULER_DNS_NAME, False, "a:1,b:2")


@pytest.mark.parametrize("text", ["10.0.0.11", "h1@", "H1@h:1", "h1@h1@h:1", "h1@a:1,h2@b:2", "@h:1", "h1@h:x", "h 1@h:1", "-@h:1"])
def test_what_is_no_host_is_refused(text: str) -> None:
    """A list of hosts, or half an address, that is dialled as it stands."""
    with pytest.raises(InvalidRequest, match="is not NODE@host:port"):
        node_settings(text, environment=NOTHING, **FILES)


def test_ipv6_addresses_are_addresses() -> None:
    """Colons taken for the port's."""
    assert node_settings("h1@[fd00::1]:7500", environment=NOTHING, **FILES).endpoints == ("[fd00::1]:7500",)


def test_a_context_of_a_host(path: Path) -> None:
    """A host's context that loses its name in the file, or is used as a cluster's."""
    here = {"HOSTLER_CONFIG": str(path)}
    assert load(path).get("attic").node_endpoint == "h1@10.0.0.11:7500"
    assert (means_one_host(None, here), means_one_host("prod", here)) == (True, False)
    found = node_settings(environment=here)
    assert (found.where, found.cert) == ("h1@10.0.0.11:7500", path.parent / "a.crt")
    with pytest.raises(InvalidRequest, match=r"h1@10.0.0.11:7500 is a single host, and this needs a cluster"):
        settings(environment=here)
    with pytest.raises(InvalidRequest, match="The node endpoint is not set"):
        node_settings(context="prod", environment=here)
    assert settings(context="prod", environment=here).endpoints == ("10.0.0.1:7400",)


def test_the_environment_s_host_counts_before_the_current_context(path: Path) -> None:
    """HOSTLER_NODE_ENDPOINT that is mixed with, or lost behind, the file's current context."""
    here = {"HOSTLER_CONFIG": str(path), "HOSTLER_NODE_ENDPOINT": "h2@h:2", "HOSTLER_INSECURE": "1"}
    assert node_settings(environment=here).where == "h2@h:2"
    with pytest.raises(InvalidRequest, match="both set"):
        means_one_host(None, here | {"HOSTLER_ENDPOINT": "h:3"})
    assert settings("h:3", environment=here).endpoints == ("h:3",)


def test_a_context_is_one_or_the_other(path: Path) -> None:
    """A guess at which of the two was meant."""
    path.write_text("[contexts.a]\nendpoint = 'h:1'\nnode_endpoint = 'h1@h:1'\n")
    with pytest.raises(InvalidRequest, match="both endpoint and node_endpoint"):
        load(path)
