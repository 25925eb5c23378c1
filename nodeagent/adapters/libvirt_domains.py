"""Which of libvirt's domains is a VM's, and how one is ended: what every call on a domain begins with. Everything here blocks."""

import libvirt
import structlog

from nodeagent.adapters import libvirt_errors
from nodeagent.core import domain_xml

log = structlog.get_logger(__name__)

NOT_OURS_CODES = frozenset({libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_OPERATION_INVALID})
"""Of virDomainGetMetadata: there is none of ours, or the (transient) domain has just ended and libvirt is about to forget it."""


def lookup(connection: libvirt.virConnect, vm_uid: str) -> libvirt.virDomain | None:
    """Whoever made it; None: there is none. Raises libvirtError."""
    try:
        return connection.lookupByName(vm_uid)
    except libvirt.libvirtError as err:
        if libvirt_errors.is_absent(err):
            return None
        raise


def ours(connection: libvirt.virConnect, vm_uid: str) -> libvirt.virDomain | None:
    """The VM's domain; a domain of that name without our tag is somebody else's and is never acted on."""
    domain = lookup(connection, vm_uid)
    try:
        if domain is not None:
            domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.NAMESPACE)
    except libvirt.libvirtError as err:
        if libvirt_errors.is_absent(err) or err.get_error_code() in NOT_OURS_CODES:
            return None
        raise
    return domain


def destroy(connection: libvirt.virConnect, vm_uid: str) -> None:
    """virDomainDestroy; nothing if there is none of ours. Raises libvirtError."""
    domain = ours(connection, vm_uid)
    if domain is None:
        return
    try:
        domain.destroy()
    except libvirt.libvirtError as err:
        if ours(connection, vm_uid) is not None:
            raise
        log.info("the domain ended while it was being destroyed", vm_uid=vm_uid, code=err.get_error_code())
