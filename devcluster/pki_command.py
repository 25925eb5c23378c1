"""`hostler pki`: a certificate authority and certificates for nodes, schedulers and users, as files. The work is in hostler.server.pki."""

from pathlib import Path
from typing import Annotated

import typer

from hostler.server import pki
from hostler.server.identity import IdentityError, Principal, PrincipalKind

app = typer.Typer(
    help="Make the cluster's certificate authority, and issue certificates.",
    no_args_is_help=True,
    epilog="Example: hostler pki init --dir /etc/hostler/ca mycluster && hostler pki issue node n1 --ca /etc/hostler/ca --out /etc/hostler/tls",
)

CaDirectory = Annotated[Path, typer.Option("--ca", help="Where `hostler pki init` put the authority.")]
Out = Annotated[Path, typer.Option("--out", help="Directory for tls.crt, tls.key and ca.crt; made if it is not there.")]
Hosts = Annotated[list[str], typer.Option("--host", help="Another DNS name or IP address of the server; may be repeated.")]
Days = Annotated[int | None, typer.Option("--days", help="Days of validity; the default depends on the kind.")]


@app.command()
def init(
    cluster: Annotated[str, typer.Argument(help="The cluster's name; part of every identity.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where the authority's key and certificate are kept.")] = Path("ca"),
) -> None:
    """Make a certificate authority. It is never overwritten."""
    try:
        authority = pki.init_ca(directory, cluster)
    except (pki.PkiError, OSError) as error:
        raise _refused(error) from error
    typer.echo(f"certificate authority of {authority.cluster} in {directory}")


@app.command()
def issue(
    kind: Annotated[PrincipalKind, typer.Argument(help="What the certificate is for.")],
    name: Annotated[str, typer.Argument(help="The node's, replica's or user's name.")],
    ca: CaDirectory = Path("ca"),
    out: Out = Path("tls"),
    host: Hosts = [],  # noqa: B006 typer reads the default
    days: Days = None,
) -> None:
    """Issue a certificate. Example: hostler pki issue user alice --out ~/.config/hostler/tls"""
    try:
        authority = pki.load_ca(ca)
        issued = pki.issue(authority, Principal(authority.cluster, kind, name), hosts=tuple(host), days=days)
        pki.write(issued, out)
    except (pki.PkiError, IdentityError, OSError) as error:
        raise _refused(error) from error
    typer.echo(f"{issued.principal.uri} in {out}")


@app.command()
def show(certificate: Annotated[Path, typer.Argument(help="A certificate file (PEM).")]) -> None:
    """Say whose certificate it is, and how long it is valid."""
    try:
        summary = pki.describe(certificate)
    except pki.PkiError as error:
        raise _refused(error) from error
    typer.echo(f"identity    {summary.identity}{' (authority)' if summary.is_ca else ''}")
    typer.echo(f"valid       {summary.not_before:%Y-%m-%d %H:%M} to {summary.not_after:%Y-%m-%d %H:%M} UTC")
    typer.echo(f"hosts       {', '.join(summary.hosts) or '-'}")
    typer.echo(f"serial      {summary.serial}")
    typer.echo(f"sha256      {summary.sha256}")


def _refused(error: Exception) -> typer.Exit:
    typer.echo(f"error: {error.strerror if isinstance(error, OSError) and error.strerror else error}", err=True)
    return typer.Exit(2)
