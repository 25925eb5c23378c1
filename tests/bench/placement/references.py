"""`python -m tests.bench.placement.references`: the reference rules on every replay, beside what is known of them; 1 if a figure is another.

It is how one sees that the replays are still the published protocols before an engine is judged by them. All of it takes some minutes of one CPU.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tests.bench.placement import flat, known, spane, traces
from tests.bench.placement.decider import ByRule, Shape
from tests.bench.placement.rules import FLAT_RULES, NUMA_RULES

EPISODES = "spane_valid_start_150.txt"
REPLAYS = ("spane", "azure", "huawei")


def of_spane(folder: Path, episodes: Path, sizes: list[int]) -> int:
    """How many figures are not the known ones. A row per rule and size."""
    vms, starts = traces.huawei(folder), traces.episode_starts(episodes)
    expected, wrong = known.SPANE_RULES.get(len(starts), {}), 0
    for servers in sizes:
        played = [spane.episode(vms, start, servers) for start in starts]
        for name, rule in NUMA_RULES.items():
            measured_s = spane.mean_wait_s(played, partial(ByRule, rule), servers)
            known_s = expected.get(name, {}).get(servers)
            wrong += differs(measured_s, known_s, known.ROUNDED_S)
            print(f"| {len(starts)} episodes, {servers} servers | {name} | {measured_s:,.1f} s | {told(known_s)} |", flush=True)
    return wrong


def of_flat(trace: str, vms: tuple[traces.TraceVm, ...], shape: Shape) -> int:
    """How many figures are not the known ones. A row per rule, and one for the lower bound."""
    wrong = 0
    found = {name: flat.replay(vms, ByRule(rule), shape) for name, rule in FLAT_RULES.items()}
    for name, hosts in {**found, known.LOWER_BOUND: flat.lower_bound(vms, shape)}.items():
        expected = known.FLAT.get(trace, {}).get(name)
        wrong += expected is not None and (
            differs(hosts.needed, expected.needed, 0) or differs(hosts.busy, expected.busy, known.ROUNDED_HOSTS)
        )
        beside = "not known" if expected is None else f"{expected.needed} hosts, {expected.busy:.1f} busy"
        print(f"| {trace} | {name} | {hosts.needed} hosts, {hosts.busy:.2f} busy | {beside} |", flush=True)
    return wrong


def differs(measured: float, expected: float | None, rounded: float) -> bool:
    return expected is not None and abs(measured - expected) > rounded


def told(known_s: float | None) -> str:
    return "not known" if known_s is None else f"{known_s:,.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.placement.references", description="the reference rules on real VM traces")
    parser.add_argument("--only", choices=REPLAYS, action="append", help="one of the replays; may be given more than once")
    parser.add_argument("--episodes", type=Path, help=f"another list of SPANE's episodes than {EPISODES}")
    parser.add_argument("--split", default="dev", help="which part of Azure 2017")
    parser.add_argument("--servers", type=int, nargs="+", default=list(spane.SERVERS), help="sizes of cluster for SPANE's episodes")
    options = parser.parse_args()
    chosen, wrong = options.only or REPLAYS, 0
    try:
        folder = traces.directory()
        print("| Replay | Rule | Measured | Known |\n|---|---|---|---|", flush=True)
        if "spane" in chosen:
            wrong += of_spane(folder, options.episodes or folder / EPISODES, options.servers)
        if "azure" in chosen:
            wrong += of_flat(f"azure {options.split}", traces.azure(folder, options.split), flat.AZURE_SHAPE)
        if "huawei" in chosen:
            wrong += of_flat("huawei", traces.huawei(folder), flat.HUAWEI_SHAPE)
    except traces.TracesMissing as missing:
        print(f"not measured: {missing}", file=sys.stderr)
        return 2
    print(f"\n{wrong} figures are not the known ones" if wrong else "\nevery figure that is known was found again")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
