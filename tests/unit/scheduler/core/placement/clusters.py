"""Random clusters and requests for the laws: small numbers, so that things fit about as often as they do not, and rules meet each other."""

from hypothesis import strategies as st

from hostler.model.domain import ServiceClass
from hostler.model.quantities import CPU_MILLI, memory_key, pool_key
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.fleet import Fleet
from scheduler.core.placement.request import LocalVolume, PlacementRequest, Purpose
from scheduler.core.records import LedgerRecord, NodePool, NodeRecord, NodeState
from scheduler.core.view import Health, NodeView, PoolView

LOCAL, SHARED = "local", "nas"
MIB = st.integers(0, 600)


NODE_FAULTS = (
    "cordoned",
    "silent",
    "hypervisor",
    "network",
    "image",
    "pools",
    "local",
    "other nas",
    "nas local",
    "emulation",
    "unprobed",
    "shrunk",
)
"""What may be wrong with a node; most have nothing or one thing."""
WISHES = ("local", "shared", "existing", "volume", "image", "network", "only", "excluded", "acceleration", "stored")
"""What a request may ask for beyond CPU and memory."""
DEMANDING = frozenset({"local", "shared", "existing", "image", "network", "acceleration"})
"""Wishes that meet most faults and that a sound node can still grant."""


@st.composite
def ledgers(draw: st.DrawFn, keys: tuple[str, ...], shrunk: bool = False) -> LedgerRecord:
    """Sound sums, or those of a node that shrank below its promises. Now and then a quantity is absent: zero."""
    offered = {key: draw(st.integers(-300, 6000)) for key in keys}
    allocatable = {key: amount for key, amount in offered.items() if amount > 0}
    claimed = {key: draw(st.integers(0, amount if shrunk else amount // 2)) + 100 * shrunk for key, amount in allocatable.items()}
    return LedgerRecord(allocatable, {key: amount for key, amount in claimed.items() if amount})


@st.composite
def nodes(draw: st.DrawFn, node_id: str, sound: bool = False) -> NodeView:
    faults = draw(st.sets(st.sampled_from(NODE_FAULTS), max_size=2)) if not sound and draw(st.booleans()) else set()
    keys = (CPU_MILLI, *(memory_key(cell) for cell in range(draw(st.integers(1, 3)))), pool_key(LOCAL))
    nas = NodePool(SHARED, "nas local" not in faults, "fp2" if "other nas" in faults else "fp1", 4000, True, {"cirros": 1})
    local = NodePool(LOCAL, "local" in faults, "", 4000, True, {} if "image" in faults else {"cirros": 1})
    ledger = draw(ledgers(keys, "shrunk" in faults))
    record = NodeRecord(
        node_id=node_id,
        state=NodeState.CORDONED if "cordoned" in faults else NodeState.ACTIVE,
        boot_id=f"boot-{node_id}",
        registrations=3,
        endpoint="",
        total=ledger.allocatable,
        reserved={},
        unmanaged={},
        pools=() if "pools" in faults else (local, nas),
        networks=() if "network" in faults else ("br0",),
        acceleration="EMULATION" if "emulation" in faults else "" if "unprobed" in faults else "KVM",
    )
    health = Health.SILENT if "silent" in faults else Health.HYPERVISOR_DOWN if "hypervisor" in faults else Health.READY
    return NodeView(record, ledger, draw(st.integers(1, 99)), health)


@st.composite
def clusters(draw: st.DrawFn, sound: bool = False) -> ClusterView:
    """Up to five nodes; `sound`: and one more without a fault, though perhaps full."""
    names = [f"n{number}" for number in range(1, 1 + draw(st.integers(0, 5)))]
    shared = {SHARED: PoolView(SHARED, draw(ledgers((pool_key(SHARED),))), draw(st.integers(1, 99)))} if draw(st.integers(0, 9)) else {}
    views = [*(draw(nodes(name)) for name in names), *((draw(nodes("n9", sound=True)),) if sound else ())]
    return ClusterView(draw(st.integers(1, 1000)), Fleet(views), shared)


@st.composite
def requests(draw: st.DrawFn, memory_mib_max: int = 3000, always: frozenset[str] = frozenset()) -> PlacementRequest:
    wishes = always | (draw(st.sets(st.sampled_from(WISHES), max_size=3)) if draw(st.booleans()) else set())
    some_node = draw(st.sampled_from(["n1", "n2", "n99"]))
    return PlacementRequest(
        vm_id="web-9",
        vcpus=draw(st.integers(1, 4)),
        memory_mib=draw(st.integers(16, memory_mib_max)),
        service_class=draw(st.sampled_from(list(ServiceClass))),
        cpu_floor_milli=draw(st.sampled_from([0, 0, 250])),
        purpose=draw(st.sampled_from(list(Purpose))),
        local_mib={LOCAL: draw(MIB)} if "local" in wishes else {},
        shared_mib={SHARED: 10 * draw(MIB)} if "shared" in wishes else {},
        fingerprints={SHARED: "fp1"} if "existing" in wishes else {},
        local_volumes=(LocalVolume("data", LOCAL, some_node),) if "volume" in wishes else (),
        images=((LOCAL, "cirros"),) if "image" in wishes else (),
        networks=("br0",) if "network" in wishes else (),
        only_node_id=some_node if "only" in wishes else "",
        excluded={"n1": "web-9 runs there now"} if "excluded" in wishes else {},
        acceleration="KVM" if "acceleration" in wishes else "",
        stored_charge={CPU_MILLI: 300, memory_key(1): 700} if "stored" in wishes else {},
    )


def roomy(node_id: str, request: PlacementRequest) -> NodeView:
    """An empty node that can take the request, written without asking the code under test."""
    shared = {*request.shared_mib, *request.fingerprints}
    local = {*request.local_mib, *(volume.pool_id for volume in request.local_volumes), *(pool for pool, _ in request.images)} - shared
    pools = [NodePool(pool, False, "", 10**6, True, {"cirros": 1}) for pool in sorted(local)]
    pools += [NodePool(pool, True, request.fingerprints.get(pool, ""), 10**6, True, {"cirros": 1}) for pool in sorted(shared)]
    plenty = {CPU_MILLI: 10**6, memory_key(0): 10**6} | {pool_key(pool): 10**6 for pool in local}
    record = NodeRecord(
        node_id,
        NodeState.ACTIVE,
        "boot",
        1,
        "",
        plenty,
        {},
        {},
        tuple(pools),
        ("br0",),
        request.acceleration or "KVM",
        hypervisor_down=False,
    )
    return NodeView(record, LedgerRecord(plenty), 1, Health.READY)
