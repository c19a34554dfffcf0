"""The schema registry: asked once an id, never waited for long, whatever it does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from typer.testing import CliRunner

from streamtask.cli import app
from streamtask.codec import RequestDecoder, avro, schema
from streamtask.codec.confluent import WriterSchema, header
from streamtask.config import TopicNames, load_settings
from streamtask.domain.model import RequestRecord, TaskRequest
from streamtask.errors import (
    ClusterError,
    ConfigError,
    DecodeError,
    RegistryUnreachable,
    SchemaPending,
    SchemaUnavailable,
)
from streamtask.schema_registry import Formats, cache, open_registry, subjects
from streamtask.schema_registry.cache import SchemaCache
from streamtask.schema_registry.client import FULL_TRANSITIVE, redacted
from streamtask.schema_registry.protocol import Registry
from tests.fake_registry import FakeRegistry, fake_registry

NAMES = TopicNames()
HIGH = NAMES.requests[0]
SUBJECT = subjects.subject_of(HIGH)
TEXT = json.dumps(schema.read("task_request"))
WAIT_S = 0.4
PATIENT_S, HASTY_S = 15.0, 0.3  # one that answers may be slow to; one that does not is not waited for long


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with fake_registry() as held:
        yield held


def registry_of(fake: FakeRegistry, timeout_s: float) -> Iterator[Registry]:
    held = open_registry(fake.url, {"timeout": timeout_s})
    yield held
    held.close()


@pytest.fixture
def registry(fake: FakeRegistry) -> Iterator[Registry]:
    yield from registry_of(fake, PATIENT_S)


@pytest.fixture
def hasty(fake: FakeRegistry) -> Iterator[Registry]:
    yield from registry_of(fake, HASTY_S)


@pytest.fixture
def known(fake: FakeRegistry) -> int:
    """The id of task_request."""
    return fake.held.register(SUBJECT, TEXT)


@pytest.fixture
def cached(registry: Registry) -> Iterator[SchemaCache]:
    """It waits for a registry for as long as it takes."""
    held = SchemaCache(registry, PATIENT_S)
    yield held
    held.close()


@pytest.fixture
def hasty_cache(hasty: Registry) -> Iterator[SchemaCache]:
    held = SchemaCache(hasty, WAIT_S)
    yield held
    held.close()


def until(happened: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := happened()):
        assert time.monotonic() < deadline, "not in time"
        threading.Event().wait(0.005)
    return found


def settled(held: SchemaCache, schema_id: int) -> Any:
    """What `get` says in the end: the schema, or the error."""

    def look() -> Any:
        try:
            return held.get(schema_id)
        except SchemaPending:
            return None
        except DecodeError as error:
            return error

    return until(look)


def nobody_waits(held: SchemaCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on."""

    def wait_for(*_: Any) -> None:
        raise AssertionError("somebody waits")

    monkeypatch.setattr(held._changed, "wait_for", wait_for)


# --- The client -------------------------------------------------------------------------------------------------------


def test_every_question_is_answered_as_the_registry_does(registry: Registry, fake: FakeRegistry) -> None:
    assert registry.id_of(SUBJECT, TEXT) is None
    assert registry.versions(SUBJECT) == []
    assert registry.schema(1) is None
    assert registry.compatibility(SUBJECT) is None
    schema_id = registry.register(SUBJECT, TEXT)
    assert registry.id_of(SUBJECT, TEXT) == registry.register(SUBJECT, TEXT) == schema_id
    found = registry.schema(schema_id)
    assert found is not None
    assert (found.kind, json.loads(found.text), found.references) == ("AVRO", json.loads(TEXT), False)
    assert [version.schema_id for version in registry.versions(SUBJECT)] == [schema_id]
    registry.set_compatibility(SUBJECT, FULL_TRANSITIVE)
    assert registry.compatibility(SUBJECT) == FULL_TRANSITIVE
    assert registry.compatible(SUBJECT, TEXT) == []
    other = json.dumps(schema.read("task_response"))
    assert registry.compatible(SUBJECT, other)
    with pytest.raises(ClusterError, match="409"):
        registry.register(SUBJECT, other)


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        ("500", "answers 500 .told to"),
        ("hang", "has not answered within 0.3 s"),
        ("drip", "has not answered within 0.3 s"),
        ("garbage", "does not answer in JSON"),
        ("endless", "endless answer|within 0.3 s"),
    ],
)
def test_a_registry_that_does_not_do_its_part_is_unreachable_within_the_timeout(
    hasty: Registry, fake: FakeRegistry, mode: str, word: str
) -> None:
    fake.mode = mode
    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=word):
        hasty.schema(1)
    assert time.monotonic() - began < 10


def test_a_registry_that_refuses_us_says_so(registry: Registry, fake: FakeRegistry) -> None:
    fake.mode = "401"
    with pytest.raises(ClusterError, match=r"refuses GET /schemas/ids/1: 401 \(told to\)"):
        registry.schema(1)


def test_several_urls_are_tried_in_turn(fake: FakeRegistry, known: int) -> None:
    held = open_registry(f"http://127.0.0.1:9, {fake.url}", {})
    assert held.schema(known) is not None
    held.close()


def test_user_and_password_are_sent_and_never_shown(fake: FakeRegistry) -> None:
    address = fake.url.removeprefix("http://")
    for url, settings in (
        (f"http://me:secret@{address}", {}),
        (fake.url, {"basic.auth.user.info": "me:secret"}),
    ):
        held = open_registry(url, settings)
        held.schema(1)
        assert fake.headers["Authorization"] == "Basic bWU6c2VjcmV0"
        assert "secret" not in held.url
        held.close()
    held = open_registry("http://me:secret@127.0.0.1:9", {"bearer.auth.token": "abc"})
    with pytest.raises(RegistryUnreachable) as told:
        held.schema(1)
    assert "secret" not in str(told.value)
    held.close()
    assert redacted("https://a:b@c/d") == "https://c/d"


@pytest.mark.parametrize("url", ["127.0.0.1:8081", "ftp://x", "http://", ","])
def test_a_url_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ConfigError, match="registry_url"):
        open_registry(url, {})


def test_settings_that_nobody_knows_or_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="timeuot"):
        open_registry("http://127.0.0.1:1", {"timeuot": 1})
    with pytest.raises(ConfigError, match="certificates cannot be read"):
        open_registry("https://127.0.0.1:1", {"ssl.ca.location": "nowhere.pem"})
    with pytest.raises(ConfigError, match="format=confluent needs a schema registry"):
        Formats(load_settings(format="confluent"))
    with pytest.raises(ConfigError, match="format"):
        load_settings(format="xml")


def test_mock_registries_are_told_apart_by_name_and_shared_within_the_process() -> None:
    one, same, other = (open_registry(f"mock://{name}", {}) for name in ("test-a", "test-a", "test-b"))
    schema_id = one.register(SUBJECT, TEXT)
    assert same.schema(schema_id) == one.schema(schema_id)
    assert other.schema(schema_id) is None
    with pytest.raises(ClusterError, match="cannot read"):
        one.register(SUBJECT, json.dumps(schema.read("task_control")))


# --- The cache --------------------------------------------------------------------------------------------------------


def test_an_id_is_asked_for_once_and_kept_when_the_registry_goes_away(
    cached: SchemaCache, fake: FakeRegistry, known: int
) -> None:
    with pytest.raises(SchemaPending) as pending:
        cached.get(known)
    until(pending.value.settled)
    found = cached.get(known)
    fake.mode = "500"
    assert cached.get(known) is cached.wait(known) is cached.insist(known) is found
    assert fake.asked[f"GET /schemas/ids/{known}"] == 1


def test_an_id_that_the_registry_does_not_know_is_answered_at_once_and_asked_for_once(
    cached: SchemaCache, fake: FakeRegistry
) -> None:
    for _ in range(3):
        assert "knows no schema 99" in str(settled(cached, 99))
        with pytest.raises(DecodeError, match="knows no schema 99"):
            cached.wait(99)
    assert fake.asked["GET /schemas/ids/99"] == 1


@pytest.mark.parametrize("mode", ["500", "hang", "garbage", "401"])
def test_while_the_registry_is_away_an_unknown_id_is_waited_for_once_and_no_other_after_it(
    hasty_cache: SchemaCache, fake: FakeRegistry, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.mode = mode
    began = time.monotonic()
    with pytest.raises(SchemaUnavailable, match="schema 7"):
        hasty_cache.wait(7)
    assert time.monotonic() - began >= WAIT_S * 0.9
    nobody_waits(hasty_cache, monkeypatch)
    for schema_id in (7, 8, 9, 7):
        with pytest.raises(SchemaUnavailable):
            hasty_cache.get(schema_id)
    with pytest.raises(RegistryUnreachable):
        hasty_cache.insist(10)


def test_when_the_registry_is_back_unknown_ids_are_known_again(
    registry: Registry, fake: FakeRegistry, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PROBE_S", 0.02)
    with closing(SchemaCache(registry, WAIT_S)) as cached:
        fake.mode = "500"
        assert isinstance(settled(cached, known), SchemaUnavailable)
        fake.mode = "well"
        until(lambda: isinstance(settled(cached, known), WriterSchema))
        until(lambda: "knows no schema 98" in str(settled(cached, 98)))


def test_one_id_that_fails_again_and_again_holds_up_no_other_and_is_waited_for_once(
    registry: Registry, fake: FakeRegistry, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = fake.held.schema
    monkeypatch.setattr(fake.held, "schema", lambda number: well(number) if number != 50 else 1 / 0)  # no answer at all
    with closing(SchemaCache(registry, WAIT_S)) as cached:
        with pytest.raises(SchemaPending):
            cached.get(50)
        until(lambda: isinstance(settled(cached, known), WriterSchema))
        assert isinstance(settled(cached, 50), SchemaUnavailable)
        nobody_waits(cached, monkeypatch)
        with pytest.raises(SchemaUnavailable):
            cached.wait(50)


def test_a_schema_that_cannot_be_read_by_is_refused_for_all_its_records(
    cached: SchemaCache, fake: FakeRegistry
) -> None:
    endless = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}
    schema_id = fake.held.register("x-value", json.dumps(endless))
    assert "inside itself" in str(settled(cached, schema_id))


def test_a_thousand_threads_worth_of_questions_for_one_id_are_one_question(
    cached: SchemaCache, fake: FakeRegistry, known: int
) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(cached.wait(known))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [cached.get(known)] * 50
    assert fake.asked[f"GET /schemas/ids/{known}"] == 1


def test_a_cache_that_is_closed_asks_nothing(cached: SchemaCache, fake: FakeRegistry, known: int) -> None:
    cached.close()
    with pytest.raises(SchemaUnavailable):
        cached.wait(known)
    assert not fake.asked


# --- A process --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_formats(fake: FakeRegistry) -> Iterator[Callable[..., Formats]]:
    made: list[Formats] = []

    def make(**more: Any) -> Formats:
        given = {"registry_url": fake.url, "registry": {"timeout": PATIENT_S}, "registry_wait_s": PATIENT_S, **more}
        made.append(Formats(load_settings(**given)))
        return made[-1]

    yield make
    for formats in made:
        formats.close()


def _decode(formats: Formats, value: bytes) -> RequestRecord:
    return RequestDecoder(NAMES, "c", formats.waiting).decode(0, 0, 0, 0, None, value, None)


def test_a_process_writes_the_wire_format_under_ids_that_it_registered_and_another_one_reads_it(
    make_formats: Callable[..., Formats], fake: FakeRegistry
) -> None:
    encoder = make_formats(format="confluent").encoder()
    request = TaskRequest(task_type="x", parameters={"n": 1})
    value = encoder.request(HIGH, request)
    assert value[:5] == header(fake.held.versions(SUBJECT)[0].schema_id)
    assert _decode(make_formats(), value).request == request
    assert all(fake.held.versions(subjects.subject_of(topic)) for topic in subjects.documents(NAMES))


def test_what_a_process_registered_it_reads_without_asking(
    make_formats: Callable[..., Formats], fake: FakeRegistry
) -> None:
    formats = make_formats(format="confluent")
    value = formats.encoder().request(HIGH, TaskRequest(task_type="x"))
    fake.mode = "hang"
    assert _decode(formats, value).problem is None


def test_a_process_that_may_not_register_says_what_to_do(
    make_formats: Callable[..., Formats], fake: FakeRegistry
) -> None:
    formats = make_formats(format="confluent", registry={"auto.register.schemas": False})
    with pytest.raises(ClusterError, match="streamtask schemas register"):
        formats.encoder()
    assert fake.held.versions(SUBJECT) == []
    fake.mode = "500"
    with pytest.raises(RegistryUnreachable):
        formats.encoder()


def test_an_unknown_schema_makes_a_record_pending_then_a_problem_of_its_own_kind(
    make_formats: Callable[..., Formats], fake: FakeRegistry
) -> None:
    fake.mode = "500"
    formats = make_formats(registry_wait_s=WAIT_S)
    value = header(7) + b"\x02x"
    with pytest.raises(SchemaPending):
        RequestDecoder(NAMES, "c", formats.reader).decode(0, 0, 0, 0, None, value, None)
    record = _decode(formats, value)
    assert record.problem is not None
    assert record.problem[0] == "schema_unavailable"
    assert "answers 500" in record.problem[1]
    assert record.value == value
    with pytest.raises(RegistryUnreachable):
        RequestDecoder(NAMES, "c", formats.insisting).decode(0, 0, 0, 0, None, value, None)


def test_without_a_registry_avro_is_written_and_nobody_is_asked() -> None:
    formats = Formats(load_settings(format="avro"))
    value = formats.encoder().request(HIGH, TaskRequest(task_type="x"))
    assert value.startswith(avro.single_header(avro.REQUEST))
    assert Formats(load_settings()).encoder().json


# --- The command line -------------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words), prog_name="streamtask")
    return done.exit_code, done.output


def test_show_prints_a_schema_that_avro_parses_and_lists_fingerprints() -> None:
    code, out = run("schemas", "show", "task_request")
    assert code == 0
    assert json.loads(out) == schema.read("task_request")
    code, out = run("schemas", "show", "--json")
    assert {row["schema"]: row["fingerprint"] for row in json.loads(out)}["task_request"] == "533c7e568660c5cb"
    assert run("schemas", "show", "task_nonsense")[0] == 2
    assert run("schemas", "show", "--version", "v99")[0] == 2


def test_check_needs_no_registry_and_with_one_asks_it_too(fake: FakeRegistry) -> None:
    assert run("schemas", "check")[0] == 0
    assert run("schemas", "check", "--registry", fake.url)[0] == 0
    foreign = {"type": "record", "name": "Other", "fields": []}
    fake.held.register(subjects.subject_of(NAMES.status), json.dumps(foreign))
    code, out = run("schemas", "check", "--registry", fake.url, "--json")
    assert code == 1
    findings = json.loads(out)["findings"]
    assert {finding["against"] for finding in findings} == {"tasks.status-value version 1"}
    fake.mode = "500"
    code, out = run("schemas", "check", "--registry", fake.url)
    assert code == 2
    assert "answers 500" in out


def test_register_may_be_run_again_and_a_dry_run_changes_nothing(fake: FakeRegistry) -> None:
    code, out = run("schemas", "register", "--registry", fake.url, "--dry-run")
    assert code == 0
    assert out.count("would register") == 5
    assert fake.held.versions(SUBJECT) == []
    code, out = run("schemas", "register", "--registry", fake.url, "--json", "--prefix", "other")
    assert {row["subject"]: row["new"] for row in json.loads(out)}["other.status-value"] is True
    code, out = run("schemas", "register", "--registry", fake.url)
    assert out.count("registered:") == 5
    assert fake.held.compatibility(SUBJECT) == FULL_TRANSITIVE
    code, out = run("schemas", "register", "--registry", fake.url)
    assert out.count("exists already:") == 5
    code, out = run("schemas", "show", "--registry", fake.url)
    assert out.count("current") == 5
    assert run("schemas", "register")[0] == 2
