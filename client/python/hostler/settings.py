"""Where to connect and as whom: what was given, completed from one context or the environment, checked before anything is dialled.

A cluster is one or more `host:port` of its schedulers, whose certificates all bear one name. A single host is `NODE@host:port`, and its certificate
must be that node's; without `NODE@` it must bear the host's own name or address (`hostler pki issue node --host`). Nobody is believed just because it
answers there: a stolen key of one host speaks for that host alone.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostler.context import means_one_host, variables
from hostler.errors import InvalidRequest, Reason, Violation
from hostler.server.identity import DNS_SUFFIX, SCHEDULER_DNS_NAME

CALL_S = 15.0
"""A call with all its repeats, unless the settings say otherwise."""
MAX_CALL_S = 300.0
"""Servers end a unary call after this."""
MAX_ENDPOINTS = 16

NODE_ENDPOINT = re.compile(r"(?:(?P<node>[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)@)?(?P<address>[^@\s,]+:\d+)")


@dataclass(frozen=True, slots=True)
class Settings:
    """`cert`, `key` and `ca` are PEM files; all three, or `insecure` and none is used.

    `server_name`: what the server's certificate must bear; empty: the host that is dialled.
    `call_s`: how long one call may take with all its repeats.
    """

    endpoints: tuple[str, ...]
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    insecure: bool = False
    call_s: float = CALL_S
    server_name: str = SCHEDULER_DNS_NAME

    @property
    def one_host(self) -> bool:
        return self.server_name != SCHEDULER_DNS_NAME

    @property
    def where(self) -> str:
        """What leads here again: the endpoints of a cluster, or `NODE@host:port`."""
        addresses = ",".join(self.endpoints)
        return f"{self.server_name.partition('.')[0]}@{addresses}" if self.one_host and self.server_name else addresses


def settings(
    endpoints: str | Sequence[str] | None = None,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    ca: str | Path | None = None,
    insecure: bool | None = None,
    call_s: float | None = None,
    context: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """A cluster's. What is not given comes from the context, or from HOSTLER_ENDPOINT, HOSTLER_CERT, HOSTLER_KEY, HOSTLER_CA, HOSTLER_INSECURE: see
    `hostler.context`; `call_s` from HOSTLER_CALL_TIMEOUT, else CALL_S. Raises InvalidRequest; NotFound for the context.
    """
    environment = os.environ if environment is None else environment
    env = variables(context, environment)
    if not endpoints and means_one_host(context, environment):
        raise needs_a_cluster(env["HOSTLER_NODE_ENDPOINT"])
    given = endpoints if endpoints else env.get("HOSTLER_ENDPOINT", "")
    listed = tuple(part.strip() for part in (given.split(",") if isinstance(given, str) else given) if part.strip())
    if not listed:
        raise _unusable(
            "endpoint", "is not set", "Set HOSTLER_ENDPOINT to host:port[,host:port] of the schedulers, or give --endpoint or --context."
        )
    if len(listed) > MAX_ENDPOINTS:
        raise _unusable("endpoint", f"has {len(listed)} entries", f"Name at most {MAX_ENDPOINTS} replicas.")
    for one in listed:
        if not one.rpartition(":")[0] or not one.rpartition(":")[2].isdigit():
            raise _unusable("endpoint", f"{one!r} is not host:port", "Give the scheduler's address and port, as in 10.0.0.1:7400.")
    return _secured(listed, SCHEDULER_DNS_NAME, cert, key, ca, insecure, call_s, env)


def node_settings(
    endpoint: str | None = None,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    ca: str | Path | None = None,
    insecure: bool | None = None,
    call_s: float | None = None,
    context: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """A single host's: as `settings`, with HOSTLER_NODE_ENDPOINT."""
    environment = os.environ if environment is None else environment
    env = variables(context, environment)
    if not endpoint and not means_one_host(context, environment):
        raise _unusable(
            "node endpoint",
            "is not set",
            "Set HOSTLER_NODE_ENDPOINT to NODE@host:port of the host's agent, or give --node-endpoint or --context.",
        )
    given = endpoint or env["HOSTLER_NODE_ENDPOINT"]
    found = NODE_ENDPOINT.fullmatch(given.strip())
    if found is None:
        raise _unusable(
            "node endpoint", f"{given!r} is not NODE@host:port", "Give the node's name, address and port, as in h1@10.0.0.11:7500."
        )
    server_name = f"{found['node']}.node.{DNS_SUFFIX}" if found["node"] else ""
    return _secured((found["address"],), server_name, cert, key, ca, insecure, call_s, env)


def needs_a_cluster(host: str) -> InvalidRequest:
    """Said to whoever asks one host for what only a cluster has."""
    return _unusable(
        "endpoint",
        f"is not set: {host} is a single host, and this needs a cluster",
        "Name a cluster with --endpoint, --context or HOSTLER_ENDPOINT; a program asks a host with hostler.connect_node().",
    )


def _secured(
    endpoints: tuple[str, ...],
    server_name: str,
    cert: str | Path | None,
    key: str | Path | None,
    ca: str | Path | None,
    insecure: bool | None,
    call_s: float | None,
    env: Mapping[str, str],
) -> Settings:
    if insecure and (cert or key or ca):
        raise _unusable(
            "insecure", "is set together with a certificate", "Give either the certificate, its key and the authority, or insecure."
        )
    if insecure is None:
        # Who names a certificate wants TLS, whatever the surroundings say.
        insecure = not (cert or key or ca) and env.get("HOSTLER_INSECURE", "").lower() in ("1", "true", "yes")
    call_s = call_s or _seconds(env.get("HOSTLER_CALL_TIMEOUT", ""))
    if insecure:
        return Settings(endpoints, insecure=True, call_s=call_s, server_name=server_name)
    files = (_file("cert", cert, env), _file("key", key, env), _file("ca", ca, env))
    return Settings(endpoints, *files, call_s=call_s, server_name=server_name)


def _seconds(text: str) -> float:
    try:
        seconds = float(text or CALL_S)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= MAX_CALL_S:
        raise _unusable("call timeout", f"{text!r} is no number of seconds", f"Set HOSTLER_CALL_TIMEOUT to at most {MAX_CALL_S:g}.")
    return seconds


def _file(name: str, value: str | Path | None, env: Mapping[str, str]) -> Path:
    path = value or env.get(f"HOSTLER_{name.upper()}", "")
    if not path:
        raise _unusable(name, "is not set", f"Set HOSTLER_{name.upper()} to a PEM file, or give --{name}.")
    return Path(path)


def _unusable(field: str, problem: str, fix: str) -> InvalidRequest:
    return InvalidRequest(Reason.FIELD_INVALID, f"The {field} {problem}.", fix, (Violation(field, problem),))
