"""What the shell offers for a name: those that there are, asked of the cluster or the host that the words before lead to.

A completion says nothing and does not keep anybody waiting: where nobody answers in COMPLETE_S, or the settings are wrong, it offers nothing, and the
command itself will say why.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import typer

from hostler.cli.output import short
from hostler.cli.session import Target

if TYPE_CHECKING:
    from hostler.cluster import Cluster
    from hostler.node import Host

COMPLETE_S = 1.5
MAX_NAMES = 500
"""One page of a list; nobody chooses from more."""

Complete = Callable[[typer.Context, str], list[str]]


def vms(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda asked: asked.list_vms(page_size=MAX_NAMES))


def volumes(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda asked: asked.list_volumes(page_size=MAX_NAMES))


def operations(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda asked: asked.list_operations(page_size=MAX_NAMES))


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, _nodes)


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda asked: asked.list_pools())


def flavors(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, _flavors)


def contexts(_ctx: typer.Context, incomplete: str) -> list[str]:
    from hostler.context import file_path, load
    from hostler.errors import HostlerError

    try:
        return [name for name in sorted(load(file_path(os.environ)).by_name) if name.startswith(incomplete)]
    except HostlerError:
        return []


async def _nodes(asked: "Cluster | Host") -> AsyncIterator[Any]:
    from hostler.node import Host

    if isinstance(asked, Host):
        yield await asked.get_host()
        return
    async for node in asked.list_nodes(page_size=MAX_NAMES):
        yield node


async def _flavors(asked: "Cluster | Host") -> AsyncIterator[Any]:
    from hostler.cluster import Cluster

    if isinstance(asked, Cluster):
        async for flavor in asked.list_flavors(page_size=MAX_NAMES):
            yield flavor


def _offered(ctx: typer.Context, incomplete: str, listed: "Callable[[Cluster | Host], AsyncIterator[Any]]") -> list[str]:
    from hostler.errors import HostlerError

    given = ctx.find_root().params
    target = Target(**{field.name: given.get(field.name) or None for field in fields(Target)})
    try:
        found = asyncio.run(_names(replace(target.settings, call_s=COMPLETE_S), listed))
    except (HostlerError, TimeoutError):
        return []
    return [name for name in found if name.startswith(incomplete)]


async def _names(settings: Any, listed: "Callable[[Cluster | Host], AsyncIterator[Any]]") -> list[str]:  # noqa: ANN401 loaded when needed
    from hostler.cluster import Cluster
    from hostler.node import Host

    found: list[str] = []
    async with asyncio.timeout(COMPLETE_S), Host(settings) if settings.one_host else Cluster(settings) as asked:
        async for one in listed(asked):
            found.append(short(one.name))
            if len(found) == MAX_NAMES:
                break
    return found
