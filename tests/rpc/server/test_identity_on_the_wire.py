"""Who gets in: only certificates of our CA, for our cluster, with one clean identity, and only where the table says so."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostler.errors import PermissionDenied, Reason, Unauthenticated, Unavailable
from hostler.server import pki
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.manual_clock import ManualClock
from tests.rpc.server.conftest import ALICE, CLUSTER, NODE2, World, dial, plain_channel, refused


async def test_a_caller_is_who_its_certificate_says(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as alice, world.channel(run.port, NODE2) as node:
        assert await alice.unary_unary("/t.Echo/WhoAmI")(b"") == b"spiffe://lab/user/alice"
        assert await node.unary_unary("/t.Echo/WhoAmI")(b"") == b"spiffe://lab/node/n2"


async def test_no_certificate_no_connection(world: World) -> None:
    async with world.serving() as run, dial(run.port, grpc.ssl_channel_credentials(world.ca.cert_pem)) as channel:
        assert isinstance(await refused(channel.unary_unary("/t.Echo/WhoAmI")(b"")), Unavailable)
    async with world.serving() as run, plain_channel(f"127.0.0.1:{run.port}") as plain:
        assert isinstance(await refused(plain.unary_unary("/t.Echo/WhoAmI")(b"")), Unavailable)


async def test_a_certificate_of_another_ca_with_the_same_names_is_refused(world: World) -> None:
    issued = pki.issue(pki.create_ca(CLUSTER), ALICE)
    credentials = grpc.ssl_channel_credentials(world.ca.cert_pem, issued.key_pem, issued.cert_pem)
    async with world.serving() as run, dial(run.port, credentials) as channel:
        assert isinstance(await refused(channel.unary_unary("/t.Echo/WhoAmI")(b"")), Unavailable)


async def test_an_expired_certificate_is_refused(world: World) -> None:
    then = ManualClock(datetime.now(UTC) - timedelta(days=3))
    issued = pki.issue(world.ca, ALICE, days=2, clock=then)
    credentials = grpc.ssl_channel_credentials(world.ca.cert_pem, issued.key_pem, issued.cert_pem)
    async with world.serving() as run, dial(run.port, credentials) as channel:
        assert isinstance(await refused(channel.unary_unary("/t.Echo/WhoAmI")(b"")), Unavailable)


def forged(world: World, sans: list[x509.GeneralName]) -> grpc.ChannelCredentials:
    """A certificate signed by the right CA with names that `pki.issue` would never write."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    cert = (
        x509.CertificateBuilder(world.ca.cert.subject, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://lab/node/n2")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .sign(world.ca.key, hashes.SHA256())
    )
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return grpc.ssl_channel_credentials(world.ca.cert_pem, key_pem, cert.public_bytes(serialization.Encoding.PEM))


NODE_URI = x509.UniformResourceIdentifier("spiffe://lab/node/n2")


@pytest.mark.parametrize(
    "sans",
    [
        pytest.param([x509.DNSName("n2.node.hostler.internal")], id="no URI"),
        pytest.param([x509.DNSName("spiffe://lab/node/n2")], id="identity as a DNS name"),
        pytest.param([NODE_URI, x509.UniformResourceIdentifier("spiffe://lab/user/alice")], id="two URIs"),
        pytest.param([x509.UniformResourceIdentifier("spiffe://lab/node/N2")], id="upper case"),
        pytest.param([x509.UniformResourceIdentifier("spiffe://lab/node/n2/")], id="trailing slash"),
        pytest.param([x509.UniformResourceIdentifier("spiffe://lab/admin/n2")], id="unknown kind"),
        pytest.param([x509.UniformResourceIdentifier("https://lab/node/n2")], id="other scheme"),
        pytest.param([x509.UniformResourceIdentifier("spiffe://lab/node/n2%00")], id="escape"),
    ],
)
async def test_the_right_ca_with_wrong_names_is_nobody(world: World, sans: list[x509.GeneralName]) -> None:
    async with world.serving() as run, dial(run.port, forged(world, sans)) as channel:
        err = await refused(channel.unary_unary("/t.Echo/NodesOnly")(b""))
        assert (type(err), err.reason) == (Unauthenticated, Reason.IDENTITY_MISSING)


async def test_the_same_ca_does_not_make_another_cluster_ours(world: World) -> None:
    uri = x509.UniformResourceIdentifier("spiffe://other/node/n2")
    async with world.serving() as run, dial(run.port, forged(world, [uri])) as channel:
        err = await refused(channel.unary_unary("/t.Echo/NodesOnly")(b""))
        assert (type(err), err.reason) == (PermissionDenied, Reason.IDENTITY_NOT_ALLOWED)


async def test_the_table_decides_and_denies_what_it_does_not_name(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as alice, world.channel(run.port, NODE2) as node:
        assert await node.unary_unary("/t.Echo/NodesOnly")(b"x") == b"x"
        for channel, method in ((alice, "NodesOnly"), (alice, "NotInTable"), (node, "NotInTable")):
            err = await refused(channel.unary_unary(f"/t.Echo/{method}")(b""))
            assert (type(err), err.reason) == (PermissionDenied, Reason.IDENTITY_NOT_ALLOWED)


async def test_a_client_does_not_talk_to_a_server_of_another_name(world: World) -> None:
    scheduler = Principal(CLUSTER, PrincipalKind.SCHEDULER, "s1")
    async with world.serving(files=world.files(NODE2)) as run:
        for expected in (Principal(CLUSTER, PrincipalKind.NODE, "n1"), scheduler):
            async with world.channel(run.port, server=expected) as channel:
                assert isinstance(await refused(channel.unary_unary("/t.Echo/WhoAmI")(b"")), Unavailable)
        async with world.channel(run.port, server=NODE2) as channel:
            assert await channel.unary_unary("/t.Echo/WhoAmI")(b"") == b"spiffe://lab/user/alice"
