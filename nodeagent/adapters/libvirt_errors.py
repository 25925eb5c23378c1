"""libvirt's error codes as the port's two answers: "no" with a sentence of ours, or "could not be asked".

libvirt's own texts carry paths, command lines and QEMU's stderr, so none of them leaves this file except to the log. The code alone does not
say enough: after kill -9 of libvirtd a call fails with code 1 (internal error), so whoever calls also says whether the connection lives;
and QEMU's refusal of an image lock is an internal error whose text has to be looked at.
"""

import libvirt
import structlog

from nodeagent.ports import HypervisorRefused, HypervisorUnavailable

log = structlog.get_logger(__name__)

_UNAVAILABLE = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    }
)

_SENTENCES = {
    libvirt.VIR_ERR_NO_DOMAIN: "The VM has no domain on this host.",
    libvirt.VIR_ERR_DOM_EXIST: "The VM has a domain on this host already.",
    libvirt.VIR_ERR_OPERATION_INVALID: "The domain is not in a state in which this can be done.",
    libvirt.VIR_ERR_OPERATION_ABORTED: "The operation on the domain was aborted.",
    libvirt.VIR_ERR_NO_SUPPORT: "The hypervisor cannot do this.",
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: "The hypervisor cannot do this.",
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: "The hypervisor cannot do this.",
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: "The hypervisor does not support a part of the VM's configuration.",
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: "The hypervisor does not understand the VM's configuration.",
    libvirt.VIR_ERR_XML_ERROR: "The hypervisor does not understand the VM's configuration.",
    libvirt.VIR_ERR_NO_MEMORY: "The host has no memory for this.",
    libvirt.VIR_ERR_RESOURCE_BUSY: "Something that the VM needs is in use on this host.",
    libvirt.VIR_ERR_ACCESS_DENIED: "The hypervisor does not let the agent do this.",
    libvirt.VIR_ERR_OPERATION_DENIED: "The hypervisor does not let the agent do this.",
    libvirt.VIR_ERR_MIGRATE_UNSAFE: "The VM's disks are not on storage that both hosts share safely.",
    libvirt.VIR_ERR_CPU_INCOMPATIBLE: "The destination's CPU cannot run the VM.",
    libvirt.VIR_ERR_DEVICE_MISSING: "A device that the VM needs is missing on this host.",
}
_OTHERWISE = "The hypervisor could not do this; the host's log says why."

_QEMU_SENTENCES = (
    ('Failed to get "write" lock', "Another process holds the write lock of one of the VM's images."),
    ("Failed to get shared", "Another process holds the write lock of one of the VM's images."),
    ("Cannot access storage file", "One of the VM's images is missing on this host or cannot be opened."),
    ("Could not open", "One of the VM's images is missing on this host or cannot be opened."),
    ("Cannot get interface MTU", "A bridge that the VM needs is missing on this host."),
    ("cannot set up guest memory", "The host has no memory for this."),
)


def answer(error: libvirt.libvirtError, what: str, alive: bool) -> HypervisorRefused | HypervisorUnavailable:
    """What to raise for `error`, met while doing `what` (for the log) on a connection that is `alive` or not."""
    code = error.get_error_code()
    text = error.get_error_message() or ""
    log.info("libvirt said no", doing=what, code=code, domain=error.get_error_domain(), text=text, connection_alive=alive)
    if not alive or code in _UNAVAILABLE or _is_unreachable(error):
        return HypervisorUnavailable(f"libvirt cannot be asked ({what})")
    for fragment, sentence in _QEMU_SENTENCES:
        if fragment in text:
            return HypervisorRefused(sentence)
    return HypervisorRefused(_SENTENCES.get(code, _OTHERWISE))


def is_absent(error: libvirt.libvirtError) -> bool:
    """The error says that there is no such domain."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def is_denied(error: libvirt.libvirtError) -> bool:
    """QEMU may not open a file of its own."""
    return "Permission denied" in (error.get_error_message() or "")


def _is_unreachable(error: libvirt.libvirtError) -> bool:
    """Connecting failed in the kernel: no socket, nobody listens."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_error_domain() == libvirt.VIR_FROM_RPC)
