"""Who a task is: canonical ids, derived ids that no release may change, and origins."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtask.codec import RequestDecoder
from streamtask.config import TopicNames
from streamtask.domain.identity import Origin, canonical, derived, new_task_id, redriven

ONE = "0192f0c1-2b3c-7d4e-8f50-112233445566"
TWO = "11111111-2222-4333-8444-555555555555"
NOBODY = b'{"task_type": "census"}'
DECODER = RequestDecoder(TopicNames(), "cluster-1")


def _task_id(value: bytes, *, key: bytes | None = None, header: bytes | None = None) -> str:
    headers = None if header is None else [("task_id", header)]
    return DECODER.decode(0, 3, 12345, 1_795_505_160_123, key, value, headers).task_id


def test_the_derived_id_of_a_record_is_the_same_in_every_release() -> None:
    golden = "fcdbb422-4267-5c11-9b08-7c736d3e6b17"
    assert derived("cluster-1", "tasks.requests.high", 3, 12345, 1_795_505_160_123) == golden
    assert _task_id(NOBODY) == golden


def test_a_derived_id_depends_on_each_part_of_the_place() -> None:
    parts = ("c", "t", 0, 0, 0)
    others = [("d", "t", 0, 0, 0), ("c", "u", 0, 0, 0), ("c", "t", 1, 0, 0), ("c", "t", 0, 1, 0), ("c", "t", 0, 0, 1)]
    assert len({derived(*parts), *(derived(*other) for other in others)}) == 6


def test_the_field_comes_before_the_header_and_the_header_before_the_key() -> None:
    field = f'{{"task_type": "census", "task_id": "{ONE}"}}'.encode()
    assert _task_id(field, header=TWO.encode(), key=TWO.encode()) == ONE
    assert _task_id(NOBODY, header=ONE.encode(), key=TWO.encode()) == ONE
    assert _task_id(NOBODY, key=TWO.encode()) == TWO


def test_a_null_field_is_an_absent_one() -> None:
    assert _task_id(b'{"task_type": "census", "task_id": null}', key=TWO.encode()) == TWO


def test_an_upper_case_id_is_the_same_task() -> None:
    assert _task_id(f'{{"task_type": "census", "task_id": "{ONE.upper()}"}}'.encode()) == ONE
    assert _task_id(NOBODY, header=ONE.upper().encode()) == ONE
    assert _task_id(NOBODY, key=ONE.upper().encode()) == ONE


@pytest.mark.parametrize("key", [None, b"", b"customer-7", b"\xff\xfe", ONE.encode() + b"0", b"x" * 36])
def test_a_key_that_is_no_uuid_names_no_task(key: bytes | None) -> None:
    assert _task_id(NOBODY, key=key) == derived("cluster-1", "tasks.requests.high", 3, 12345, 1_795_505_160_123)


@pytest.mark.parametrize(
    "text",
    ["", "x", ONE[:-1], ONE + "0", "{" + ONE + "}", "urn:uuid:" + ONE, ONE.replace("-", ""), ONE + "\n", "ſ" + ONE[1:]],
)
def test_only_the_hyphenated_spelling_is_a_uuid(text: str) -> None:
    assert canonical(text) is None


@given(st.uuids())
def test_every_uuid_has_one_canonical_spelling(value: uuid.UUID) -> None:
    assert canonical(str(value)) == canonical(str(value).upper()) == str(value)


def test_a_new_id_is_a_uuid_of_version_7_and_sorts_by_time() -> None:
    ids = [uuid.UUID(new_task_id()) for _ in range(1_000)]
    assert {item.version for item in ids} == {7}
    assert {item.variant for item in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 1_000
    times = [item.int >> 80 for item in ids]
    assert times == sorted(times)


@given(st.sampled_from(["high", "normal", "low"]), st.integers(0, 9_999), st.integers(0, 2**63 - 1))
def test_an_origin_is_read_back_as_it_was_written(band: str, partition: int, offset: int) -> None:
    origin = Origin(band, partition, offset)
    assert Origin.parse(str(origin)) == origin


def test_an_origin_is_spelled_band_partition_offset() -> None:
    assert str(Origin("high", 3, 12345)) == "high-3@12345"


@pytest.mark.parametrize("text", ["", "high", "high-3", "high-3@", "-3@1", "high-x@1", "high-3@1 ", "high-3@-1"])
def test_other_texts_are_no_origin(text: str) -> None:
    assert Origin.parse(text) is None


def test_the_id_of_a_redrive_is_the_same_in_every_release() -> None:
    assert redriven("tasks.dead", 3, 12345, 1_795_505_160_123) == "0aaf2c3a-679b-521e-89b1-e2bada094f54"


def test_the_id_of_a_redrive_depends_on_each_part_of_the_letters_place() -> None:
    parts = ("t", 0, 0, 0)
    others = [("u", 0, 0, 0), ("t", 1, 0, 0), ("t", 0, 1, 0), ("t", 0, 0, 1)]
    assert len({redriven(*parts), *(redriven(*other) for other in others)}) == 5


def test_no_two_threads_and_no_forked_process_draw_the_same_id() -> None:
    ids: list[str] = [new_task_id()]  # parts of further ones are drawn by now
    threads = [threading.Thread(target=lambda: ids.extend(new_task_id() for _ in range(5_000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    code = (
        "import os; from streamtask.domain.identity import new_task_id; new_task_id(); os.fork();"
        "os.write(1, (new_task_id() + chr(10)).encode())"
    )
    forked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    tails = [text[14:] for text in [*ids, *forked.stdout.split()]]
    assert len(tails) == 20_003
    assert len(set(tails)) == 20_003, "the random parts differ, whatever the clock says"
