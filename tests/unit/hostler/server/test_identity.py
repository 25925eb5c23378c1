"""Identities: one spelling each, and nothing that is not one passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.server.identity import IdentityError, Principal, PrincipalKind, insecure_principal, parse_only_principal, parse_principal

LABEL = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
PRINCIPALS = st.builds(Principal, LABEL, st.sampled_from(PrincipalKind), LABEL)


@given(PRINCIPALS)
def test_what_is_written_is_read_back(principal: Principal) -> None:
    assert parse_principal(principal.uri) == principal


@given(PRINCIPALS, st.integers(0, 80), st.text(min_size=1, max_size=2))
def test_one_identity_has_one_spelling(principal: Principal, at: int, extra: str) -> None:
    changed = principal.uri[:at] + extra + principal.uri[at:]
    try:
        parsed = parse_principal(changed)
    except IdentityError:
        return
    assert parsed.uri == changed


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://lab/node/",
        "spiffe://lab/node",
        "spiffe:///node/n1",
        "spiffe://lab/node/n1/",
        "spiffe://lab/node/n1\n",
        "spiffe://lab/node/n1?x=1",
        "spiffe://lab/node/n1#x",
        "spiffe://lab/node/../user/root",
        "spiffe://lab/node/n%31",
        "SPIFFE://lab/node/n1",
        "spiffe://LAB/node/n1",
        "spiffe://lab:1/node/n1",
        "spiffe://u@lab/node/n1",
        "spiffe://lab/node/n1-",
        "spiffe://lab/node/1n",
        "spiffe://lab/node/n.1",
        "spiffe://lab/scheduler/a_b",
        "spiffe://lab/user/al ice",
        "spiffe://lab/user/аlice",
        "spiffe://lab/admin/alice",
        "spiffe://lab/node/" + "n" * 64,
        "spiffe://a.b.c.d.e/node/n1",
    ],
)
def test_a_near_miss_is_nobody(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_principal(uri)


def test_a_principal_cannot_be_made_out_of_nonsense() -> None:
    for cluster, kind, name in (("lab", PrincipalKind.NODE, "a/b"), ("lab/x", PrincipalKind.NODE, "a"), ("lab", PrincipalKind.NODE, "a.b")):
        with pytest.raises(IdentityError):
            Principal(cluster, kind, name)
    assert Principal("lab", PrincipalKind.USER, "a.b_c").id == "a.b_c"


def test_a_certificate_has_exactly_one_identity() -> None:
    for uris in ([], ["spiffe://lab/node/n1", "spiffe://lab/node/n1"]):
        with pytest.raises(IdentityError, match="exactly one"):
            parse_only_principal(uris)


def test_servers_have_names_that_clients_can_verify_and_users_have_none() -> None:
    assert Principal("lab", PrincipalKind.NODE, "n1").dns_name == "n1.node.hostler.internal"
    assert Principal("lab", PrincipalKind.SCHEDULER, "s2").dns_name == "scheduler.hostler.internal"
    assert insecure_principal("lab").dns_name is None
