"""The cores that a worker may use, how many processes it starts on them, and how many children each of these has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command

from streamtask import App
from streamtask.cli import app
from streamtask.config import CHILDREN_MAX, PROCESSES_MAX, Settings, load_settings
from streamtask.config.container import Cores, cores
from streamtask.dev import part
from streamtask.errors import ConfigError
from streamtask.kafka import permissions
from streamtask.observability import event_log
from streamtask.worker import process
from streamtask.worker.core_share import CoreShare, share_of
from tests.control_groups import tree

V1 = "9:name=systemd:/\n4:memory:/pod\n2:cpu,cpuacct:/pod/box\n0::/\n"

# --- The cores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "count"), [("50000 100000", 1), ("150000 100000", 1), ("200000 100000", 2), ("700000 200000", 3)]
)
def test_a_quota_counts_in_whole_cores_and_at_least_one(tmp_path: Path, quota: str, count: int) -> None:
    assert cores(*tree(tmp_path, "0::/\n", {"cpu.max": f"{quota}\n"}), affinity=8) == Cores(count, "quota")


def test_the_smallest_quota_of_a_group_and_its_parents_counts(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "500000 100000"}
    assert cores(*tree(tmp_path, "0::/a/b/c\n", files), affinity=8) == Cores(3, "quota")


def test_a_quota_that_is_not_below_the_cores_limits_nothing(tmp_path: Path) -> None:
    files = tree(tmp_path, "0::/\n", {"cpu.max": "200000 100000"})
    assert cores(*files, affinity=2) == Cores(2, "cores")
    assert cores(*files, affinity=1) == Cores(1, "cores")


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_is_found_by_either_name_of_its_folder(tmp_path: Path, folder: str) -> None:
    files = {f"{folder}/pod/cpu.cfs_quota_us": "250000", f"{folder}/pod/cpu.cfs_period_us": "100000"}
    files |= {f"{folder}/pod/box/cpu.cfs_quota_us": "-1", f"{folder}/pod/box/cpu.cfs_period_us": "100000"}
    assert cores(*tree(tmp_path, V1, files), affinity=8) == Cores(2, "quota")


def test_a_quota_of_version_1_is_found_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}
    assert cores(*tree(tmp_path, V1, files), affinity=8) == Cores(3, "quota")


def test_a_quota_of_version_2_counts_beside_version_1(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1", "unified/cpu.max": "100000 50000"}
    assert cores(*tree(tmp_path, V1, files), affinity=8) == Cores(2, "quota")


@pytest.mark.parametrize(
    "text", ["max 100000", "max", "", "100000", "100000 0", "0 100000", "-1 100000", "² 3", "a b", "1 2 3", "\x00\x7f"]
)
def test_what_is_no_quota_limits_nothing(tmp_path: Path, text: str) -> None:
    files = {"cpu.max": text, "cpu/cpu.cfs_quota_us": text}
    assert cores(*tree(tmp_path, "nonsense\n2:cpu:/\n0::/x\n", files), affinity=8) == Cores(8, "cores")


def test_without_control_groups_the_cores_of_the_process_count(tmp_path: Path) -> None:
    assert cores(tmp_path / "absent", tmp_path, affinity=8) == Cores(8, "cores")


def test_bytes_that_are_no_text_limit_nothing(tmp_path: Path) -> None:
    groups, mount = tree(tmp_path, "0::/\n", {})
    (mount / "cpu.max").write_bytes(b"\xff\xfe 100000")
    assert cores(groups, mount, affinity=8) == Cores(8, "cores")


def test_the_cores_of_the_process_are_those_of_its_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent"
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 3, 5}, raising=False)
    assert cores(absent, tmp_path) == Cores(3)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 2, raising=False)  # Python 3.13 has it
    assert cores(absent, tmp_path) == Cores(2)
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS does not have it
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores(absent, tmp_path) == Cores(1), "at least one"


# --- The processes ----------------------------------------------------------------------------------------------------


def test_a_worker_has_a_process_per_core() -> None:
    assert share_of(None, None, Cores(4)) == CoreShare(4, "cores", children=2)
    assert share_of(None, None, Cores(2, "quota")) == CoreShare(2, "quota", children=2)


@pytest.mark.parametrize(("processes", "children"), [(1, 16), (2, 8), (3, 5), (8, 2), (16, 2), (40, 2)])
def test_the_processes_share_the_cores_for_their_children(processes: int, children: int) -> None:
    assert share_of(processes, None, Cores(16)) == CoreShare(processes, "given", children)


def test_each_process_has_a_child_that_is_reserved_for_urgent_tasks() -> None:
    """Of two slots one is, of a single one none would be (test_one_slot_in_eight_is_kept_for_high)."""
    assert [share_of(None, None, Cores(count)).children for count in (1, 2, 8)] == [2, 2, 2]


def test_what_is_set_is_not_divided() -> None:
    assert share_of(3, 6, Cores(2)) == CoreShare(3, "given", children=6)
    assert share_of(None, 6, Cores(2)) == CoreShare(2, "cores", children=6)


def test_a_machine_with_more_cores_than_a_setting_allows_still_starts() -> None:
    assert share_of(None, None, Cores(384)).processes == PROCESSES_MAX
    assert share_of(1, None, Cores(2_048)).children == CHILDREN_MAX
    load_settings(processes=PROCESSES_MAX, children=CHILDREN_MAX)
    (option,) = (one for one in get_command(app).commands["worker"].params if one.name == "processes")  # type: ignore[attr-defined]
    assert option.max == PROCESSES_MAX, "the option allows what the setting does"


def test_the_processes_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMTASK_PROCESSES", raising=False)
    assert load_settings().processes is None
    monkeypatch.setenv("STREAMTASK_PROCESSES", "3")
    assert load_settings().processes == 3
    assert load_settings(processes=1).processes == 1, "an argument wins"
    with pytest.raises(ConfigError, match="processes=0"):
        load_settings(processes=0)


def test_a_worker_process_that_shares_no_cores_has_a_child_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMTASK_CHILDREN", raising=False)
    monkeypatch.setattr("streamtask.config.cores", lambda: Cores(6))
    assert Settings().children_max == 6
    assert Settings(children=2).children_max == 2


# --- The supervisor ---------------------------------------------------------------------------------------------------


class Started:
    """What a supervisor was made with; it starts nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: Cores, memory_limit: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.processes = 0
        self.overrides: dict[str, Any] = {}
        for name in Settings.model_fields:
            monkeypatch.delenv(f"STREAMTASK_{name.upper()}", raising=False)
        monkeypatch.setattr(process, "load_app", lambda _path: App("test"))
        monkeypatch.setattr(process, "cores", lambda: found)
        monkeypatch.setattr("streamtask.worker.memory_budget.memory_limit", lambda *_: memory_limit)
        monkeypatch.setattr(process, "Supervisor", self._supervisor)
        monkeypatch.setattr(process, "Failover", lambda *_, **__: SimpleNamespace(died=None, close=lambda _s: None))
        monkeypatch.setattr(event_log, "configure", lambda: None)
        monkeypatch.setattr(event_log, "emit", lambda name, told: self.events.append((name, dict(told))))
        monkeypatch.setattr(permissions, "partition_count", lambda *_: 12)

    def _supervisor(self, _command: object, processes: int, *, settings: str, **_: object) -> object:
        self.processes = processes
        self.overrides = json.loads(settings)
        return SimpleNamespace(run=lambda: 0)


APP = "app:app"
GIVEN = {"bootstrap_servers": "127.0.0.1:1"}


def test_a_supervisor_starts_a_process_per_core_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch, Cores(3, "quota"), memory_limit=1_200 << 20)
    assert process.supervise(APP, {**GIVEN, "processes": None, "children": None, "memory_mb": None}) == 0
    assert started.processes == 3
    assert started.events == [("supervisor_event", {"what": "starting", "processes": 3, "processes_by": "quota"})]
    shares = {name: started.overrides[name] for name in ("processes", "children", "memory_mb")}
    assert shares == {"processes": 3, "children": 2, "memory_mb": 200}, "half of the memory, divided among three"


def test_a_number_that_is_given_wins_over_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch, Cores(8))
    process.supervise(APP, {**GIVEN, "processes": 2, "children": 5})
    assert (started.processes, started.overrides["children"]) == (2, 5)
    assert started.events[0][1]["processes_by"] == "given"


def test_a_variable_gives_the_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch, Cores(8))
    monkeypatch.setenv("STREAMTASK_PROCESSES", "4")
    process.supervise(APP, GIVEN)
    assert (started.processes, started.overrides["children"]) == (4, 2)
    assert started.events[0][1]["processes_by"] == "given"


def test_a_session_of_dev_has_one_process_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch, Cores(8))
    monkeypatch.setenv("STREAMTASK_PROCESSES", "4")
    part.worker({"app": APP, "overrides": GIVEN, "processes": 1, "local": False})
    assert (started.processes, started.overrides["children"]) == (1, 8)
