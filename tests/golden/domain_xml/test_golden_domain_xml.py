"""Domains as text: each folder is a spec and the XML that must come out of it, word for word; libvirt's own schema accepts every one.

A changed device or option shows as a diff to be reviewed, because it changes what guests see. `HOSTLER_UPDATE_GOLDEN=1` writes the answers anew.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from nodeagent.core.domain_xml import Acceleration, domain_xml, parse_tag
from nodeagent.core.observed import CopyTag

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/spec.json"))
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
UPDATE = "HOSTLER_UPDATE_GOLDEN"


def built(case: str) -> tuple[str, CopyTag]:
    raw: dict[str, Any] = json.loads((HERE / case / "spec.json").read_text())
    disks = tuple(DiskSpec(disk["volume_uid"], disk["pool_id"], disk["format"]) for disk in raw["disks"])
    spec = DomainSpec(
        vm_uid=raw["vm_uid"],
        vm_id=raw["vm_id"],
        vcpus=raw["vcpus"],
        cpu_floor_milli=raw["cpu_floor_milli"],
        memory_mib=raw["memory_mib"],
        service_class=ServiceClass(raw["service_class"]),
        disks=disks,
        nics=tuple(NicSpec(nic["bridge"], nic["mac_address"]) for nic in raw["nics"]),
    )
    tag = CopyTag(spec.vm_uid, raw["epoch"], raw["operation_id"])
    paths = {disk["volume_uid"]: disk["path"] for disk in raw["disks"]}
    return domain_xml(spec, tag, paths, Acceleration(raw["acceleration"]), raw["console_log"]), tag


@pytest.mark.parametrize("case", CASES)
def test_a_spec_becomes_exactly_this_domain(case: str) -> None:
    """A device that appears, disappears or changes unnoticed breaks guests, migrations or the locks."""
    xml, tag = built(case)
    expect = HERE / case / "expect.xml"
    if os.environ.get(UPDATE):
        expect.write_text(xml + "\n")
    assert xml + "\n" == expect.read_text()
    assert parse_tag(xml) == tag


@pytest.mark.parametrize("case", CASES)
def test_libvirts_schema_accepts_it(case: str) -> None:
    """What the schema refuses, libvirt refuses at the start of a VM."""
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    schema.assertValid(etree.fromstring((HERE / case / "expect.xml").read_text()))
