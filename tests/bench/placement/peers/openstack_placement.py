"""OpenStack Placement as a peer: its own WSGI application, called in process on an sqlite file, one request after the other.

No HTTP, no Keystone and no second worker, so a figure is the service's own work; sqlite is not the MySQL of a real installation, which has to be
said wherever a figure is quoted. Hosts and what runs on them are written into its tables at once, because each request takes tens of milliseconds,
and then asked back through the API. A placement is two requests: the candidates for a shape, of which the first is taken (whoever ranks them is
another service), and the claim on it. It counts whole CPUs, MiB and GiB.
Run by a Python that has it: `python -m tests.bench.placement.peers.openstack_placement`; see `served`.
"""

import importlib
import importlib.metadata
import io
import json
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from tests.bench.placement.peers.cluster import Answer, Cluster, Host, Shape, free, whole_cpus
from tests.bench.placement.peers.served import Served, serve

PACKAGE, VERSION = "openstack-placement", "16.0.0"
INSTALL = f"make a venv and pip install {PACKAGE}=={VERSION} there"
LIMIT = 1000
"""Candidates asked for at once: nova's own default."""
GIB = 1024
PROJECT, USER, CONSUMER_TYPE = "hostler-bench", "hostler-bench", "INSTANCE"
NAMES = uuid.UUID("00000000-0000-4000-8000-000000000000")
CPU, MEMORY, DISK = "VCPU", "MEMORY_MB", "DISK_GB"


def openstack_placement(python: Path, cluster: Cluster, *, limit: int = LIMIT, ready_s: float = 300.0) -> Served:
    """In a process of its own, by a Python that has it. Its rounds' answers have the parts "query" and "claim". Raises PeerMissing."""
    return Served(__name__, python, cluster, install=INSTALL, ready_s=ready_s, settings={"limit": limit})


class Asked(Protocol):
    """What answers requests."""

    def must(self, method: str, path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's body, empty where there is none. Raises RuntimeError for an answer that is no success."""


class Service:
    """The application, on a database in `folder`. Raises ImportError where it is not installed."""

    def __init__(self, folder: Path) -> None:
        config = importlib.import_module("oslo_config.cfg").ConfigOpts()
        deploy, database = (importlib.import_module(f"placement.{name}") for name in ("deploy", "db_api"))
        importlib.import_module("placement.conf").register_opts(config)
        config.set_default("connection", f"sqlite:///{folder}/placement.sqlite", group="placement_database")
        config([], default_config_files=[], default_config_dirs=[])
        config.set_override("sync_on_startup", True, group="placement_database")
        config.set_override("auth_strategy", "noauth2", group="api")
        database.configure(config)
        self._application = deploy.loadapp(config)
        self.engine = database.get_placement_engine()

    def must(self, method: str, path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        status: list[str] = []
        chunks = self._application(_environment(method, path, query, data), lambda line, _headers, _error=None: status.append(line))
        answer = b"".join(chunks)
        if not status[-1].startswith("2"):
            raise RuntimeError(f"{method} {path}: {status[-1]}: {answer.decode()}")
        told: dict[str, Any] = json.loads(answer) if answer else {}
        return told


def _environment(method: str, path: str, query: str, data: bytes) -> dict[str, Any]:
    """Of WSGI, as an administrator's request of the latest version."""
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(data)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_ACCEPT": "application/json",
        "HTTP_X_AUTH_TOKEN": "admin",
        "HTTP_X_ROLES": "admin,service",
        "HTTP_OPENSTACK_API_VERSION": "placement latest",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(data),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def amounts(shape: Shape) -> dict[str, int]:
    """What it takes of each class; a class of which it takes nothing is not asked for. Raises ValueError for what Placement does not count."""
    if shape.disk_mib % GIB:
        raise ValueError(f"{shape.disk_mib} MiB of disk are no whole number of GiB, and this peer counts no parts of one")
    found = {CPU: whole_cpus(shape.cpu_milli), MEMORY: shape.memory_mib, DISK: shape.disk_mib // GIB}
    return {name: amount for name, amount in found.items() if amount}


def candidates_query(shape: Shape, limit: int) -> str:
    resources = ",".join(f"{name}:{amount}" for name, amount in amounts(shape).items())
    return f"resources={resources}&limit={limit}"


def provider(host_id: str) -> str:
    """A provider's uuid."""
    return str(uuid.uuid5(NAMES, host_id))


class Placement:
    """A service that knows a cluster."""

    def __init__(self, service: Asked, cluster: Cluster, limit: int) -> None:
        self._service = service
        self._limit = limit
        self._hosts = {provider(host.id): host.id for host in cluster.hosts}
        self._claims: list[str] = []

    def place(self, shape: Shape) -> Answer:
        began_s = time.perf_counter()
        found = self._service.must("GET", "/allocation_candidates", candidates_query(shape, self._limit))
        asked_s = time.perf_counter()
        if not found["allocation_requests"]:
            return Answer(None, asked_s - began_s, "no candidates", {"query": asked_s - began_s})
        chosen, claim = found["allocation_requests"][0], str(uuid.uuid4())
        owner = {"project_id": PROJECT, "user_id": USER, "consumer_generation": None, "consumer_type": CONSUMER_TYPE}
        self._service.must("PUT", f"/allocations/{claim}", body={**chosen, **owner})
        ended_s = time.perf_counter()
        self._claims.append(claim)
        host_id = self._hosts[next(iter(chosen["allocations"]))]
        return Answer(host_id, ended_s - began_s, "", {"query": asked_s - began_s, "claim": ended_s - asked_s})

    def undo(self) -> None:
        for claim in self._claims:
            self._service.must("DELETE", f"/allocations/{claim}")
        self._claims.clear()


def fill(service: Service, cluster: Cluster) -> None:
    """Write the cluster into the service's tables. Raises RuntimeError if its API then says something else of the first or the last host."""
    models = importlib.import_module("placement.db.sqlalchemy.models")
    with service.engine.begin() as connection:
        classes = {row.name: row.id for row in connection.execute(models.ResourceClass.__table__.select())}
        for model, rows in tables(cluster, classes).items():
            if rows:
                connection.execute(getattr(models, model).__table__.insert(), rows)
    left = free(cluster)
    for host in {cluster.hosts[0], cluster.hosts[-1]}:
        check(service, host, left[host.id])


def check(service: Asked, host: Host, left: Shape) -> None:
    """That the API says of a host what was written of it. Raises RuntimeError."""
    have = service.must("GET", f"/resource_providers/{provider(host.id)}/inventories")["inventories"]
    used = service.must("GET", f"/resource_providers/{provider(host.id)}/usages")["usages"]
    told = {name: (one["total"] * one["allocation_ratio"], one["total"] - used[name]) for name, one in have.items()}
    wanted = {name: (amount, amounts(left).get(name, 0)) for name, amount in amounts(all_of(host)).items()}
    if told != wanted:
        raise RuntimeError(f"the service says {told} of a host that has {wanted}")


def all_of(host: Host) -> Shape:
    return Shape(host.cpu_milli, host.memory_mib, host.disk_mib)


def tables(cluster: Cluster, classes: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The rows that requests would have written, by the model they belong to. `classes`: the id of each resource class."""
    numbers = {host.id: number for number, host in enumerate(cluster.hosts, 1)}
    allocations = [
        {"resource_provider_id": numbers[one.host_id], "consumer_id": provider(one.id), "resource_class_id": classes[name], "used": amount}
        for one in cluster.instances
        for name, amount in amounts(one.shape).items()
    ]
    inventories = [
        {
            "resource_provider_id": numbers[host.id], "resource_class_id": classes[name], "total": amount, "reserved": 0, "min_unit": 1,
            "max_unit": amount, "step_size": 1, "allocation_ratio": 1.0,
        }
        for host in cluster.hosts
        for name, amount in amounts(all_of(host)).items()
    ]  # fmt: skip
    return {
        "ResourceProvider": [
            {"id": numbers[host.id], "uuid": provider(host.id), "name": host.id, "generation": 1, "root_provider_id": numbers[host.id]}
            for host in cluster.hosts
        ],
        "Inventory": inventories,
        "Project": [{"id": 1, "external_id": PROJECT}],
        "User": [{"id": 1, "external_id": USER}],
        "ConsumerType": [{"id": 1, "name": CONSUMER_TYPE}],
        "Consumer": [
            {"uuid": provider(one.id), "project_id": 1, "user_id": 1, "generation": 1, "consumer_type_id": 1} for one in cluster.instances
        ],
        "Allocation": allocations,
    }


def opened(folder: Path, cluster: Cluster, settings: dict[str, Any]) -> tuple[Placement, dict[str, Any]]:
    service = Service(folder)
    fill(service, cluster)
    return Placement(service, cluster, settings["limit"]), {"version": importlib.metadata.version(PACKAGE)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        serve(lambda cluster, settings: opened(Path(folder), cluster, settings))
