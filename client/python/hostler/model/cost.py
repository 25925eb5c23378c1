"""What a VM costs a host: the only formula, used for the claim, by the scheduler and, standalone, by the agent.

Memory overhead v0, MiB: RAM/512 (second-level page tables) + 64 (QEMU itself) + 8 per vCPU (stacks, TLBs). No video, TPM or passed-through
devices yet; each will be a term here. The result is stored with the claim and never recomputed for a VM that exists.
"""

from hostler.model.domain import ServiceClass
from hostler.model.quantities import CPU_MILLI, Quantities, memory_key

PAGE_TABLE_DIVISOR = 512
QEMU_BASE_MIB = 64
PER_VCPU_MIB = 8
BURSTABLE_FLOOR_MILLI = 100
"""Default floor of a burstable vCPU: a tenth of a CPU."""


def memory_overhead_mib(vcpus: int, memory_mib: int) -> int:
    """MiB that the host spends on a guest beyond its RAM; rounded up."""
    return -(-memory_mib // PAGE_TABLE_DIVISOR) + QEMU_BASE_MIB + PER_VCPU_MIB * vcpus


def cpu_floor_milli(service_class: ServiceClass, vcpus: int, asked_milli: int) -> int:
    """The guaranteed CPU in thousandths: what was asked for, or what the class gives."""
    match service_class:
        case ServiceClass.GUARANTEED:
            return asked_milli or 1000 * vcpus
        case ServiceClass.BURSTABLE:
            return asked_milli or BURSTABLE_FLOOR_MILLI * vcpus
        case ServiceClass.BEST_EFFORT:
            return 0


def charge(vcpus: int, floor_milli: int, memory_mib: int, cell: int = 0) -> Quantities:
    """What a claim takes from a node: CPU floor, and RAM plus overhead in one NUMA cell."""
    memory = {memory_key(cell): memory_mib + memory_overhead_mib(vcpus, memory_mib)}
    return memory | ({CPU_MILLI: floor_milli} if floor_milli else {})
