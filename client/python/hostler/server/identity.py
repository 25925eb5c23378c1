"""Who is calling: one name per node, scheduler replica or user, read from exactly one URI in its certificate.

`spiffe://<cluster>/node/<id>`, `.../scheduler/<id>`, `.../user/<name>`. The parser is strict, because two spellings of one identity are two
identities to a table: lower case only, no escapes, no query, no trailing slash. Ids of nodes and schedulers are DNS labels, because servers
also carry a DNS name that clients verify: `<id>.node.hostler.internal` for a node, `scheduler.hostler.internal` for every scheduler replica
(a client talks to any of them). User names may also have dots and underscores.

A server that runs without TLS (loopback or unix socket only) sees every caller as `user/insecure-local`: it has no proof, so it never takes
anybody for a node or a scheduler.
"""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

DNS_SUFFIX = "hostler.internal"
SCHEDULER_DNS_NAME = f"scheduler.{DNS_SUFFIX}"
INSECURE_USER = "insecure-local"

_LABEL = r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_USER = r"[a-z](?:[-a-z0-9._]{0,61}[a-z0-9])?"
_CLUSTER = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_CLUSTER_NAME = re.compile(_CLUSTER)
_URI = re.compile(rf"spiffe://(?P<cluster>{_CLUSTER})/(?:(?P<kind>node|scheduler)/(?P<id>{_LABEL})|user/(?P<user>{_USER}))")


class PrincipalKind(StrEnum):
    NODE = "node"
    SCHEDULER = "scheduler"
    USER = "user"


class IdentityError(ValueError):
    """Not an identity; the message is one sentence without the offending text."""


@dataclass(frozen=True, slots=True, order=True)
class Principal:
    """An authenticated caller of one cluster. Constructing one checks its parts (IdentityError)."""

    cluster: str
    kind: PrincipalKind
    id: str

    def __post_init__(self) -> None:
        if _URI.fullmatch(self.uri) is None:
            raise IdentityError(
                "A principal's cluster, node and scheduler ids are 1 to 63 characters a-z, 0-9 and -, beginning with a letter and not ending"
                " with -; user names may also have . and _."
            )

    @property
    def uri(self) -> str:
        """`spiffe://<cluster>/<kind>/<id>`, as in the certificate."""
        return f"spiffe://{self.cluster}/{self.kind}/{self.id}"

    @property
    def dns_name(self) -> str | None:
        """The name that clients verify when this principal is a server; users serve nothing."""
        match self.kind:
            case PrincipalKind.NODE:
                return f"{self.id}.node.{DNS_SUFFIX}"
            case PrincipalKind.SCHEDULER:
                return SCHEDULER_DNS_NAME
            case PrincipalKind.USER:
                return None

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


def parse_principal(uri: str) -> Principal:
    """The principal that a certificate's URI names. Raises IdentityError."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise IdentityError("The certificate's URI is not spiffe://<cluster>/node/<id>, /scheduler/<id> or /user/<name>.")
    kind, name = (found["kind"], found["id"]) if found["kind"] else ("user", found["user"])
    return Principal(found["cluster"], PrincipalKind(kind), name)


def parse_only_principal(uris: list[str]) -> Principal:
    """The principal of a certificate with these URI names: exactly one, or it is nobody. Raises IdentityError."""
    if len(uris) != 1:
        raise IdentityError(f"The certificate must carry exactly one URI name; it has {len(uris)}.")
    return parse_principal(uris[0])


def check_cluster_name(cluster: str) -> None:
    """Raises IdentityError unless `cluster` is one to four DNS labels joined by dots."""
    if _CLUSTER_NAME.fullmatch(cluster) is None:
        raise IdentityError("A cluster's name is a-z, 0-9 and -, beginning with a letter; up to four such parts may be joined by dots.")


def insecure_principal(cluster: str) -> Principal:
    """Whoever calls a server without TLS."""
    return Principal(cluster, PrincipalKind.USER, INSECURE_USER)


_current: ContextVar[Principal] = ContextVar("hostler_principal")


def current_principal() -> Principal:
    """Who makes the call that is being served. Raises LookupError outside of one."""
    return _current.get()


def enter_principal(principal: Principal) -> None:
    """Set by the authentication step for the rest of the RPC's task (and by tests of servicers)."""
    _current.set(principal)
