"""The peers of the benchmarks: who is chosen, how many tasks each gets, what is refused, and what table and chart say."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message

from benchmarks.__main__ import main, parse
from benchmarks.app import parameters
from benchmarks.peers import environments, publish, report, stores
from benchmarks.peers.apps import jobs
from benchmarks.peers.catalogue import JOBS, KNOWN, PEERS, TABLE, chosen, scaled
from benchmarks.peers.environments import base_python, key, pinned
from benchmarks.peers.report import Row, bars, median, order, rate, text, with_ratios
from benchmarks.peers.stores import Ends
from benchmarks.stand import Failed
from streamtask.handlers.registry import Registry
from streamtask.testing import Broker


def row(peer: str, job: str, tasks_per_s: int | None, left_out: str | None = None, *, round: int = 1) -> Row:
    return Row(
        peer=peer,
        title=f"The {peer}",
        guarantee="runs again",
        version="1.2.3",
        job=job,
        configuration="2 processes",
        durability="fsync each second",
        tasks=100,
        tasks_per_s=tasks_per_s,
        left_out=left_out,
        round=round,
    )


def found(rows: list[Row]) -> dict[str, Any]:
    return {
        "rows": [
            {name: getattr(held, name) for name in Row.__slots__}
            for number in sorted({one.round for one in rows})
            for held in with_ratios(one for one in rows if one.round == number)
        ],
        "rounds": max(one.round for one in rows),
        "machine": {"system": "Linux 6", "cpu": "a CPU", "cores": 2, "load": 0.1},
        "versions": {"streamtask": "0.1.0", "kafka": "4.3.1"},
        "redis": "6.2.14",
        "commit": "abc1234",
    }


ROWS = [
    row("raw", "noop", 40_000),
    row("streamtask", "noop", 10_000),
    row("celery-prefork", "noop", 500),
    row("arq", "noop", 2_000),
    row("rq", "noop", None, "rq: not installed: no such version"),
    row("raw", "sleep_1ms", 900),
    row("streamtask", "sleep_1ms", 8_000),
    row("celery-prefork", "sleep_1ms", 400),
]


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_a_rate_is_timed_from_the_first_to_the_last_result_and_does_not_count_those_of_the_first_moment() -> None:
    assert rate(Ends(4, [1_000, 1_000, 1_500, 2_000]), 4) == 2.0
    assert rate(Ends(3, [1_000, 1_000, 1_000]), 3) == 0.0


def test_a_rate_does_not_count_the_first_round_of_all_places() -> None:
    batches = [1_000, 1_001, 2_000, 2_001, 3_001, 3_001]
    assert rate(Ends(6, batches), 6) == pytest.approx(2.5, abs=0.01), "the second of the first batch had no time"
    assert rate(Ends(6, batches), 6, 2) == 2.0
    assert rate(Ends(6, batches), 6, 100) == rate(Ends(6, batches), 6, 3), "half of them are counted at least"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (Ends(2, [1, 2]), "there are 2, of 2 tasks"),
        (Ends(4, [1, 2, 3]), "there are 4, of 3 tasks"),
        (Ends(3, [1, 2]), "there are 3, of 2 tasks"),
        (Ends(0, [], "SomeError: no broker"), "nothing was measured. Its worker said: SomeError: no broker"),
    ],
)
def test_a_rate_of_results_that_are_not_one_for_each_task_is_refused(ends: Ends, said: str) -> None:
    with pytest.raises(Failed, match="3 tasks should have left 3 results") as refused:
        rate(ends, 3)
    assert said in str(refused.value)


def test_ratios_are_of_the_raw_loop_where_tasks_do_not_wait_and_of_streamtask_for_the_same_job() -> None:
    ratios = {(held.peer, held.job): (held.ratio_raw, held.ratio_streamtask) for held in with_ratios(ROWS)}
    assert ratios["celery-prefork", "noop"] == (0.013, 0.05)
    assert ratios["celery-prefork", "sleep_1ms"] == (None, 0.05)
    assert ratios["streamtask", "noop"] == (0.25, 1.0)
    assert ratios["rq", "noop"] == (None, None)


def test_without_a_figure_of_streamtask_there_is_no_ratio() -> None:
    assert [held.ratio_streamtask for held in with_ratios([row("arq", "noop", 5)])] == [None]


def test_a_ratio_is_taken_within_its_round_and_then_the_median_of_the_rounds() -> None:
    pairs = ((10_000, 20_000), (20_000, 20_000), (10_000, 5_000))
    rows = [
        held
        for number, (ours, theirs) in enumerate(pairs, 1)
        for held in with_ratios([row("streamtask", "noop", ours), row("quix", "noop", theirs, round=number)])
    ]
    quix = median(rows, "quix", "noop")
    assert quix is not None
    assert quix.spread == (20_000, 5_000, 20_000)
    assert quix.streamtask == (1.0, 0.5, 2.0), "the ratio of the medians would be 2"
    assert quix.raw is None
    assert median(rows, "quix", "mixed") is None


def test_a_round_in_which_a_peer_failed_is_left_out_of_its_median() -> None:
    held = median([row("rq", "noop", None, "why"), row("rq", "noop", 500, round=2)], "rq", "noop")
    assert held is not None
    assert held.spread == (500, 500, 500)


# --- Table and chart --------------------------------------------------------------------------------------------------


def test_the_fastest_stands_first_and_who_was_left_out_last() -> None:
    assert order(ROWS) == ["raw", "streamtask", "arq", "celery-prefork", "rq"]


def test_the_table_says_ratios_first_then_terms_what_was_left_out_and_why_and_who_measured() -> None:
    said = text(found(ROWS))
    lines = said.splitlines()
    celery = next(line for line in lines if line.startswith("│ celery-prefork"))
    assert [cell.split() for cell in celery.strip("│ ").split("│")] == [
        ["celery-prefork"],
        ["0.013"],
        ["0.050", "500"],
        ["0.050", "400"],
    ]
    assert "fsync each second" in said
    assert "left out: rq: rq: not installed: no such version" in lines
    assert lines[-1] == "a CPU, 2 cores, Linux 6, load 0.1; streamtask 0.1.0, kafka 4.3.1, redis 6.2.14; commit abc1234"
    assert said.index("× raw") < said.index("fsync each second")


def test_the_longest_bar_is_as_wide_as_it_may_be_and_none_is_empty() -> None:
    lines = bars(with_ratios(ROWS), width=20).splitlines()
    assert lines[0] == "noop, tasks a second (× streamtask)"
    assert lines[1] == "  raw             " + "█" * 20 + "  40,000   4.00"
    assert lines[4] == "  celery-prefork  █" + " " * 19 + "     500  0.050"
    assert len(lines) == 10
    assert not any(line.startswith("  rq") for line in lines)
    assert lines[6] == "sleep_1ms, tasks a second (× streamtask)"


ROUNDS = [
    *(row("raw", "noop", per_s, round=number) for number, per_s in enumerate((40_000, 50_000, 60_000), 1)),
    *(row("streamtask", "noop", per_s, round=number) for number, per_s in enumerate((10_000, 10_000, 20_000), 1)),
    *(row("quix", "noop", per_s, round=number) for number, per_s in enumerate((20_000, 30_000, 30_000), 1)),
    *(row("arq", "noop", per_s, round=number) for number, per_s in enumerate((2_000, 1_000, 2_000), 1)),
    row("streamtask", "mixed", 3_000),
]


def test_the_page_has_ratios_with_their_range_first_and_names_who_is_ahead() -> None:
    lines = publish.page(found(ROUNDS)).splitlines()
    assert lines[0] == "| × streamtask, tasks a second | guarantee | no-op | mixed |"
    assert lines[1] == "|---|---|---|---|"
    assert lines[2:6] == [
        "| The raw | runs again | 4.00 (3.00–5.00); 50,000 | · |",
        "| The quix | runs again | 2.00 (1.50–3.00); 30,000 | · |",
        "| **The streamtask** | runs again | **10,000 (10,000–20,000)** | **3,000** |",
        "| The arq | runs again | 0.10 (0.10–0.20); 2,000 | · |",
    ]
    assert "streamtask ÷ raw loop: no-op 0.25 (0.20–0.33)." in lines
    assert "- no-op: The quix 2.00." in lines, "the raw loop is no other system"
    assert "- mixed: none." in lines
    assert "Medians (and ranges) of 3 rounds, each ratio within its round." in lines


def test_the_README_has_a_line_for_each_job_with_the_fastest_other_system() -> None:
    assert publish.brief(found(ROUNDS)).splitlines() == [
        "- no-op: **10,000 (10,000–20,000)** tasks a second, 0.25 (0.20–0.33) of a raw loop; "
        "the fastest other, The quix: 2.00 (1.50–3.00) ×",
        "- mixed: **3,000** tasks a second",
    ]


def test_figures_are_put_between_the_two_comments_of_a_page_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{publish.BEGIN}\nold\nold\n{publish.END}\nafter {publish.BEGIN}\n")
    assert publish.replaced(page, "new") == f"before\n{publish.BEGIN}\nnew\n{publish.END}\nafter {publish.BEGIN}\n"
    page.write_text("no place\n")
    with pytest.raises(Failed, match="no lines <!-- figures -->"):
        publish.replaced(page, "new")


@pytest.mark.parametrize("page", [publish.README, publish.PERFORMANCE], ids=lambda page: page.name)
def test_both_pages_have_one_place_for_the_figures(page: Path) -> None:
    text = page.read_text()
    assert (text.count(publish.BEGIN), text.count(publish.END)) == (1, 1)
    assert publish.replaced(page, "x") != text


def test_the_place_in_the_README_has_as_many_lines_as_the_table_has_jobs() -> None:
    _, _, rest = publish.README.read_text().partition(publish.BEGIN)
    assert len(rest.partition(publish.END)[0].strip().splitlines()) == len(TABLE), "new figures do not make it longer"


def test_the_text_below_the_table_says_of_every_system_that_is_ahead_why_it_is() -> None:
    _, _, rest = publish.PERFORMANCE.read_text().partition(publish.BEGIN)
    table, _, below = rest.partition(publish.END)
    _, _, listed = table.partition("Ahead of streamtask:")
    why, _, _ = below.partition("\n## ")
    ahead = {peer.title.split(",")[0] for peer in PEERS if peer.title in listed}
    assert {name for name in ahead if name not in why} == set()


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_a_chart_without_matplotlib_ends_with_code_2_and_one_line_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    without_matplotlib(monkeypatch)
    assert main(["throughput", "--peers", "--chart", str(tmp_path / "chart.png")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "pip install 'streamtask-kafka[bench]'" in said[0]


def test_the_chart_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.draw(found(ROWS), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


# --- Who takes part ---------------------------------------------------------------------------------------------------


def test_a_name_takes_each_way_that_begins_with_it_and_none_takes_all() -> None:
    assert [peer.name for peer in chosen(["celery"])] == ["celery-prefork", "celery-threads"]
    assert [peer.name for peer in chosen(["pyrallel-async", "rq"])] == [
        "pyrallel-async-awaited",
        "pyrallel-async-forgotten",
        "rq",
    ]
    assert chosen([]) == list(PEERS)


def test_a_name_that_is_no_peer_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Failed, match=r"--peers cel: no such peer. There are quix-eos"):
        chosen(["cel"])


def test_who_is_slower_gets_fewer_tasks_but_enough_turns_for_each_place() -> None:
    assert scaled(15_000, 60_000, 1) == 60_000
    assert scaled(500, 60_000, 2) == 2_000
    assert scaled(500, 60_000, 500) == 4_000
    assert scaled(100, 3_000, 1) == 100
    assert scaled(500, 50, 500) == 50


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_its_script_its_pins_and_says_what_it_promises(peer: Any) -> None:
    assert (Path(jobs.__file__).parent / f"{peer.script}.py").exists()
    assert pinned(peer.environment, peer.package)
    assert set(peer.either) <= set(JOBS)
    assert peer.title
    assert peer.guarantee
    assert len(peer.per_s) == len(JOBS)
    assert peer.configuration
    assert peer.durability


@pytest.mark.parametrize("file", sorted(environments.REQUIREMENTS.glob("*.txt")), ids=lambda file: file.stem)
def test_every_requirement_is_pinned(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines
    assert all(line.count("==") == 1 for line in lines)


def test_a_package_that_is_not_pinned_is_told() -> None:
    with pytest.raises(Failed, match=r"requirements/rq.txt does not pin celery"):
        pinned("rq", "celery")


def test_an_environment_is_another_one_when_its_pins_or_its_python_change() -> None:
    assert key("celery==1", "3.11.7") == key("celery==1", "3.11.7")
    assert len({key("celery==1", "3.11.7"), key("celery==2", "3.11.7"), key("celery==1", "3.12.1")}) == 3


def test_this_python_is_taken_when_it_is_new_enough_and_a_missing_one_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert base_python((3, 11)) == Path(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(Failed, match=r"it needs Python 3.99 or newer"):
        base_python((3, 99))


# --- The backlog ------------------------------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize("committed", [True, False])
def test_a_backlog_is_not_seen_before_all_members_share_the_partitions(broker: Broker, committed: bool) -> None:
    seen: list[Message] = []
    with (
        stores.peer_topics(broker.bootstrap, 4) as names,
        stores.backlog(broker.bootstrap, names.requests, "mixed", 20, committed=committed) as let_go,
        ExitStack() as stack,
    ):
        about = {"bootstrap.servers": broker.bootstrap, "group.id": names.requests, "auto.offset.reset": "earliest"}
        consumers = [Consumer(about) for _ in range(2)]
        for consumer in consumers:
            consumer.subscribe([names.requests])
            stack.callback(consumer.close)

        def read() -> None:
            for consumer in consumers:
                seen.extend(consumer.consume(100, 0.05))

        stores.until_shared(broker.bootstrap, names.requests, 4, 2, read)
        assert seen == []
        let_go()
        deadline = time.monotonic() + 30
        while len(seen) < 20 and time.monotonic() < deadline:
            read()
    assert sorted(json.loads(message.value() or b"")["parameters"]["size"] for message in seen) == list(range(20))


# --- Jobs and command line --------------------------------------------------------------------------------------------


def test_every_job_is_a_task_of_ours_that_takes_its_parameters() -> None:
    from benchmarks.app import app

    registry: Registry = app.registry
    for job in JOBS:
        for number in range(len(jobs.MIXTURE)):
            one = jobs.part(job, number)
            registry[one].arguments(parameters(number, one))  # raises when they do not fit
            assert parameters(number, one) == jobs.parameters(job, number)
    assert set(KNOWN) == {"raw", "streamtask"}
    assert len(TABLE) == 5


def test_of_the_mixed_job_70_percent_wait_20_compute_and_10_are_large() -> None:
    parts = Counter(jobs.part("mixed", number) for number in range(1_000))
    assert parts == {"sleep_5ms": 700, "cpu_1ms": 200, "payload_20k": 100}
    assert [number for number in range(10) if "payload" in jobs.parameters("mixed", number)] == [5]


def test_a_process_of_a_script_that_needs_one_runs_in_the_script_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    run = jobs.Run(job="noop", tasks=1, address="", processes=1)
    monkeypatch.setenv(jobs.VARIABLE, json.dumps(asdict(run)))
    jobs.in_each_process(lambda: ran.append("here"))
    assert ran == ["here"]


def test_a_script_runs_once_for_each_process_and_each_knows_its_number_and_has_its_own_folder(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, jobs\n"
        "def main():\n"
        "    line = f'{os.environ[jobs.NUMBER]} {os.path.basename(os.getcwd())}\\n'\n"
        "    os.write(1, line.encode())  # at once: the other process writes to the same pipe\n"
        "jobs.in_each_process(main)\n"
    )
    run = jobs.Run(job="noop", tasks=1, address="", processes=2)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(jobs.__file__).parent),
        jobs.VARIABLE: json.dumps(asdict(run)),
    }
    said = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert sorted(said.stdout.splitlines()) == ["0 process-0", "1 process-1"]


def test_requests_have_three_parameters_and_a_payload_of_20_kb_where_that_is_the_job() -> None:
    assert jobs.parameters("noop", 7) == {"path": "lib/module_7.py", "size": 7, "deep": True}
    assert len(jobs.parameters("payload_20k", 7)["payload"]) == 20_000
    assert jobs.payload(1) == jobs.payload(1) != jobs.payload(2)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["throughput", "--peers", "celary"], "--peers celary: no such peer. There are"),
        (["throughput", "--peers", "--chart", "no/such/folder/a.png"], "the folder no/such/folder does not exist"),
        (["soak", "--minutes", "0"], "--minutes 0"),
    ],
    ids=lambda held: held[0] if isinstance(held, list) else "",
)
def test_a_wrong_argument_is_refused_before_a_broker_is_started_and_anything_is_measured(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.__main__.broker", lambda _bootstrap: pytest.fail("a broker was started"))
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_peers_may_be_named_and_belong_to_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["throughput"]).peers is None
    assert parse(["throughput", "--peers"]).peers == ()
    assert parse(["throughput", "--peers", "celery,rq"]).peers == ("celery", "rq")
    for argv, said in [
        (["latency", "--peers"], "--peers is of throughput"),
        (["throughput", "--chart", "a.png"], "are of throughput --peers"),
        (["throughput", "--rounds", "3"], "are of throughput --peers"),
        (["throughput", "--jobs", "noop"], "--defaults takes one job"),
        (["throughput", "--defaults", "--jobs", "noop,mixed"], "--defaults takes one job"),
        (["throughput", "--defaults", "--jobs", "noop", "--handler", "thread"], "leave --handler out"),
        (["throughput", "--peers", "rq", "--write"], "publishes all of it"),
        (["throughput", "--peers", "--jobs", "noop,fast"], "--jobs fast: there are noop"),
    ]:
        with pytest.raises(SystemExit):
            parse(argv)
        assert said in capsys.readouterr().err
