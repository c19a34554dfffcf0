"""The memory budget of a worker process: set, derived from its container, or the default, and what its parts add up to."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamtask.config import EngineConfig
from streamtask.config.container import memory_limit
from streamtask.config.kafka import KafkaSettings
from streamtask.worker.memory_budget import MIB, Budget, budget_of
from tests.control_groups import tree

UNLIMITED_V1 = "9223372036854771712"


def test_what_is_set_wins_over_the_container() -> None:
    assert budget_of(100, 4, limit=512 * MIB) == Budget(100, "memory_mb")


def test_without_a_limit_and_a_setting_it_is_256() -> None:
    assert budget_of(None, limit=None) == Budget(256, "default")


@pytest.mark.parametrize(
    ("limit_mb", "processes", "memory_mb"),
    [(512, 1, 256), (512, 2, 128), (256, 1, 128), (4_096, 1, 1_024), (64, 2, 32)],
)
def test_half_of_a_containers_limit_is_divided_among_its_processes(
    limit_mb: int, processes: int, memory_mb: int
) -> None:
    assert budget_of(None, processes, limit=limit_mb * MIB) == Budget(memory_mb, "cgroup")


def test_the_limit_of_a_container_under_cgroup_v2_is_found(tmp_path: Path) -> None:
    groups, mount = tree(tmp_path, "0::/\n", {"memory.max": "536870912\n"})
    assert memory_limit(groups, mount) == 512 * MIB
    assert budget_of(None, limit=groups, root=mount) == Budget(256, "cgroup")


def test_the_smallest_limit_of_a_group_and_its_parents_counts(tmp_path: Path) -> None:
    files = {"a/memory.max": "536870912", "a/b/memory.max": "max", "a/b/c/memory.max": "1073741824"}
    groups, mount = tree(tmp_path, "0::/a/b/c\n", files)
    assert memory_limit(groups, mount) == 512 * MIB


def test_the_limit_of_a_container_under_cgroup_v1_is_found_where_its_path_is_the_hosts(tmp_path: Path) -> None:
    groups, mount = tree(
        tmp_path,
        "8:pids:/docker/abc\n4:cpu,memory:/docker/abc\n0::/\n",
        {"memory/memory.limit_in_bytes": "268435456"},
    )
    assert memory_limit(groups, mount) == 256 * MIB


def test_no_limit_is_no_limit_however_it_is_spelled(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": UNLIMITED_V1, "unified/memory.max": "max"}
    groups, mount = tree(tmp_path, "4:memory:/\n0::/\nnonsense\n", files)
    assert memory_limit(groups, mount) is None
    assert memory_limit(tmp_path / "absent", mount) is None


@pytest.mark.parametrize("memory_mb", [32, 256, 1_024, 100_000])
def test_the_parts_of_a_budget_do_not_add_up_to_more_than_it(memory_mb: int) -> None:
    budget = Budget(memory_mb)
    limits = budget.limits()
    held = limits["waiting_bytes_max"] + limits["active_bytes_max"] + 2 * limits["batch_bytes_max"]
    held += (3 * budget.fetch_kbytes + 2 * budget.tail_kbytes) * 1_024
    assert held <= memory_mb * MIB


def test_the_default_budget_is_what_an_engine_has_by_itself() -> None:
    config, budget = EngineConfig(), Budget(256)
    assert budget.limits()["waiting_bytes_max"] == config.waiting_bytes_max
    assert budget.limits()["active_bytes_max"] == config.active_bytes_max
    assert budget.fetch_kbytes == KafkaSettings("x:1").fetch_kbytes


def test_a_consumer_fetches_ahead_what_its_budget_allows() -> None:
    kafka = KafkaSettings("x:1", fetch_kbytes=Budget(64).fetch_kbytes, tail_kbytes=Budget(64).tail_kbytes)
    assert kafka.consumer("g")["queued.max.messages.kbytes"] == 2_730
    assert kafka.tail()["queued.max.messages.kbytes"] == 2_048
    assert kafka.held_bytes_max == 2_730 * 1_024


def test_what_is_fetched_ahead_fills_a_transaction_also_with_requests_of_20_kb() -> None:
    """Bug: each transaction carried the 200 requests that 4 MB of prefetch are, however many slots were free."""
    full = EngineConfig().events_max // 3  # three events a task
    properties = KafkaSettings("x:1", fetch_kbytes=Budget(256).fetch_kbytes).consumer("g")
    assert properties["queued.min.messages"] >= full
    assert properties["queued.max.messages.kbytes"] * 1_024 >= full // 2 * 20_000
