"""What is known of the replays: the published figures, and those that the reference rules have. A replay that gives others is broken, not better.

SPANE's table is over its 1,000 test episodes: result/flex/result_baseline.txt and result.csv of ChanTinPing/SPANE @3dbe525. `SPANE_LEARNED` is
the mean of its three best learned models. best-fit and imbalance-and-pack over the same episodes are from a replay of ours before this one, which
had balance-fit at all sizes and first-fit at 5 and 9 servers to the last digit.

Nobody publishes figures over SPANE's 150 validation episodes. Those of first-fit, best-fit and balance-fit here are this replay's after it had
agreed with SPANE's own environment and agents (best-fit with its one fault repaired) in the waiting time of every single episode at every size;
imbalance-and-pack is ours alone.

The flat replays are ours alone. Their figures were reckoned by two programs that share nothing; those of Azure's test split by one of them.
"""

from collections.abc import Mapping

from tests.bench.placement.flat import Hosts

BySize = Mapping[int, float]
TEST_EPISODES, VALIDATION_EPISODES = 1000, 150

SPANE_LEARNED: BySize = {2: 40385, 3: 39885, 4: 37750, 5: 63697, 6: 53693, 7: 106229, 8: 169193, 9: 188872}
SPANE_RULES: Mapping[int, Mapping[str, BySize]] = {
    TEST_EPISODES: {
        "first-fit": {2: 53867, 3: 52483, 4: 44461, 5: 89823, 6: 67177, 7: 129370, 8: 182133, 9: 201329},
        "best-fit": {5: 101148, 9: 221070},
        "balance-fit": {2: 38611, 3: 38832, 4: 37829, 5: 86010, 6: 62644, 7: 118267, 8: 176529, 9: 181042},
        "imbalance-and-pack": {2: 38158, 3: 37592, 4: 35983, 5: 48141, 6: 47119, 7: 96509, 8: 167332, 9: 181773},
    },
    VALIDATION_EPISODES: {
        "first-fit": {2: 129874, 3: 217497, 4: 298008, 5: 267140, 6: 247189, 7: 447098, 8: 486980, 9: 364664},
        "best-fit": {2: 133288, 3: 226859, 4: 304178, 5: 254804, 6: 253430, 7: 401934, 8: 429842, 9: 349604},
        "balance-fit": {2: 117749, 3: 153416, 4: 266429, 5: 204081, 6: 227915, 7: 417740, 8: 459334, 9: 291426},
        "imbalance-and-pack": {2: 115785, 3: 158324, 4: 255812, 5: 200964, 6: 215499, 7: 375112, 8: 427763, 9: 276164},
    },
}
"""Seconds, by number of episodes, rule and number of servers."""

LOWER_BOUND = "lower bound"
FLAT: Mapping[str, Mapping[str, Hosts]] = {
    "azure test": {"first-fit": Hosts(1017, 804.8), "least-cpu": Hosts(1015, 794.2), LOWER_BOUND: Hosts(1013, 709.9)},
    "azure dev": {"first-fit": Hosts(705, 422.7), "least-cpu": Hosts(701, 421.2), LOWER_BOUND: Hosts(698, 381.8)},
    "huawei": {"first-fit": Hosts(78, 45.1), "least-cpu": Hosts(75, 44.8), LOWER_BOUND: Hosts(67, 29.3)},
}
"""By trace and rule."""

ROUNDED_S, ROUNDED_HOSTS = 0.5, 0.05
"""What rounding explains."""
