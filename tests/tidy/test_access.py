"""Every method that is served is in the access table, and answers only those it is for."""

from google.protobuf.descriptor import ServiceDescriptor

from nodeagent import access as agent_access
from scheduler import access as scheduler_access


def _methods(services: dict[ServiceDescriptor, frozenset[str]]) -> set[str]:
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def test_every_method_has_its_roles() -> None:
    """A method without a row would be refused to everybody; one with a row too many would be open."""
    assert set(agent_access.ACCESS) == _methods(agent_access.SERVICES)
    assert set(scheduler_access.ACCESS) == _methods(scheduler_access.SERVICES)


def test_no_node_and_no_user_may_command_an_agent() -> None:
    """A stolen host key, or a user's, must not start or move VMs on another host."""
    for method, roles in agent_access.ACCESS.items():
        if "AgentService" in method:
            assert roles == {"scheduler"}, method
        if "PeerService" in method:
            assert roles == {"node"}, method
    for method, roles in scheduler_access.ACCESS.items():
        assert roles == ({"node"} if "ClusterLink" in method else {"user"}), method
