"""Fast failover without a cluster: which settings reach the second client, what a dead child leaves behind, and that
nothing here waits or fails loudly. With a broker: tests/acceptance/test_failover.py."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamtask.cli.workers import _choose, _ranges
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import ConfigError, Unreachable
from streamtask.kafka.admin_session import GroupMember
from streamtask.worker import failover
from streamtask.worker.failover import Failover, mapped, remove_members
from streamtask.worker.heartbeat import NOTE_FD, Note
from streamtask.worker.supervisor import Supervisor

pytest.importorskip("kafka.admin", reason="needs the extra `failover`")

DEADLINE_S = 60.0
SCRAM = {"security.protocol": "sasl_ssl", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "u", "sasl.password": "p"}


def until(true: Callable[[], Any], what: Any = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, what() if callable(what) else what
        threading.Event().wait(0.01)


# --- Settings ---------------------------------------------------------------------------------------------------------

MAPPED: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
    ({}, {"security_protocol": "PLAINTEXT"}),
    ({"security.protocol": "plaintext", "linger.ms": 5, "fetch.min.bytes": 1}, {"security_protocol": "PLAINTEXT"}),
    # what the protocol does not use does not matter
    ({"ssl.keystore.location": "k.p12", "sasl.mechanism": "GSSAPI"}, {"security_protocol": "PLAINTEXT"}),
    ({"security.protocol": "SSL", "sasl.mechanism": "OAUTHBEARER"}, {"security_protocol": "SSL"}),
    (
        {"security.protocol": "ssl", "ssl.ca.location": "ca.pem", "ssl.endpoint.identification.algorithm": "none"},
        {"security_protocol": "SSL", "ssl_cafile": "ca.pem", "ssl_check_hostname": False},
    ),
    (
        {
            "security.protocol": "SSL",
            "ssl.ca.location": "probe",
            "ssl.certificate.location": "me.pem",
            "ssl.key.location": "me.key",
            "ssl.key.password": "k",
            "ssl.endpoint.identification.algorithm": "https",
            "enable.ssl.certificate.verification": True,
        },
        {
            "security_protocol": "SSL",
            "ssl_certfile": "me.pem",
            "ssl_keyfile": "me.key",
            "ssl_password": "k",
            "ssl_check_hostname": True,
        },
    ),
    (
        {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "PLAIN", "sasl.username": "u", "sasl.password": 7},
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "u",
            "sasl_plain_password": "7",
        },
    ),
    (
        {**SCRAM, "sasl.kerberos.service.name": "kafka"},
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": "u",
            "sasl_plain_password": "p",
        },
    ),
]


@pytest.mark.parametrize(("extra", "expected"), MAPPED, ids=lambda value: str(value.get("security.protocol", "")))
def test_settings_that_both_clients_know_are_mapped(extra: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    config, unmapped = mapped(KafkaSettings("a:1, b:2", client_id="me", extra=extra).admin())
    assert unmapped == []
    assert config == {"bootstrap_servers": ["a:1", "b:2"], "client_id": "me", **expected}


UNMAPPED: list[tuple[Mapping[str, Any], list[str]]] = [
    ({"security.protocol": "TLS"}, ["security.protocol=TLS"]),
    ({"security.protocol": "SASL_SSL"}, ["sasl.mechanism=GSSAPI"]),  # librdkafka's default
    ({**SCRAM, "sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc"}, ["sasl.mechanism=OAUTHBEARER"]),
    ({**SCRAM, "ssl.ca.pem": "-----BEGIN"}, ["ssl.ca.pem"]),
    ({**SCRAM, "ssl.crl.location": "crl.pem"}, ["ssl.crl.location"]),
    ({**SCRAM, "ssl.cipher.suites": "x", "ssl.curves.list": "y"}, ["ssl.cipher.suites", "ssl.curves.list"]),
    ({**SCRAM, "enable.ssl.certificate.verification": "false"}, ["enable.ssl.certificate.verification"]),
    ({"security.protocol": "SSL", "ssl.keystore.location": "k.p12"}, ["ssl.keystore.location"]),
    ({"security.protocol": "SSL", "ssl.ca.location": os.curdir}, ["ssl.ca.location=. (a directory)"]),
]


@pytest.mark.parametrize(("extra", "expected"), UNMAPPED, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_setting_without_a_counterpart_is_named_and_no_secret_with_it(
    extra: Mapping[str, Any], expected: list[str]
) -> None:
    _, unmapped = mapped(KafkaSettings("a:1", extra=extra).admin())
    assert unmapped == expected


def test_every_mapped_name_is_one_of_the_second_client() -> None:
    known = failover._client_class().DEFAULT_CONFIG
    names = {name for extra, _ in MAPPED for name in mapped(KafkaSettings("a:1", extra=extra).admin())[0]}
    assert names <= set(known), names - set(known)
    assert set(failover.SAME.values()) <= names, "a name that no row tries"


# --- Off, and without an answer ---------------------------------------------------------------------------------------


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as told:
        yield told


def _named(logs: list[Any], name: str) -> list[Any]:
    return [line for line in logs if line["event"] == name]


def test_without_the_extra_one_line_says_what_to_install(logs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kafka.admin", None)  # what Python itself does for a module that is not there
    off = Failover(KafkaSettings("a:1"), "g", window_s=10)
    off.died("member")
    off.close(DEADLINE_S)
    assert [(line["event"], line["log_level"]) for line in logs] == [("failover_off", "info")]
    assert "pip install 'streamtask-kafka[failover]'" in logs[0]["why"]


def test_an_unmapped_setting_turns_it_off_and_one_line_names_it(logs: list[Any]) -> None:
    extra = {"security.protocol": "SSL", "ssl.keystore.location": "k.p12", "ssl.keystore.password": "hush"}
    off = Failover(KafkaSettings("a:1", extra=extra), "g", window_s=10)
    off.died("member")
    off.close(DEADLINE_S)
    assert [(line["event"], line["log_level"]) for line in logs] == [("failover_unmapped", "warning")]
    assert "ssl.keystore.location" in logs[0]["why"]
    assert "hush" not in str(logs)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that answers nothing: connections are taken, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_broker_that_answers_nothing_holds_nobody_up(
    logs: list[Any], nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "CALL_S", 3.0)
    one = Failover(KafkaSettings(nobody), "g", window_s=3.0)
    before = time.monotonic()
    for n in range(3):
        one.died(f"member-{n}")
    assert time.monotonic() - before < failover.CALL_S, "no call was waited for"
    until(lambda: _named(logs, "member_not_removed"), lambda: logs)
    until(lambda: sum(len(line["members"]) for line in _named(logs, "member_not_removed")) == 3, lambda: logs)
    assert len(_named(logs, "failover_unproven")) == 1
    one.close(5)
    assert not one._thread.is_alive()


def test_an_eviction_without_an_answer_is_an_error_in_words(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "CALL_S", 0.3)
    with pytest.raises(Unreachable, match=nobody):
        remove_members(KafkaSettings(nobody), "g", ["member"], reason="test")


# --- What a child leaves behind ---------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from streamtask.worker.heartbeat import Note
from streamtask.execution.parent_watch import die_with_parent
die_with_parent()
note = Note().member
for n in range(5_000):
    note(f"member-{n}-with-a-long-name")
note(sys.argv[1])
if os.fork() == 0:   # inherits every descriptor, and outlives its parent for a while
    signal.alarm(3); signal.pause()
open(sys.argv[2], "w").close()
signal.pause()
"""


@pytest.mark.parametrize(("note", "left"), [("last", ["last"]), ("", [])])
def test_a_killed_child_leaves_the_member_id_that_it_had_last(tmp_path: Path, note: str, left: list[str]) -> None:
    died: list[str] = []
    up = tmp_path / "up"

    def on_event(name: str, _fields: Mapping[str, Any]) -> None:
        if name == "child_ended":
            supervisor.stop()

    argv = [sys.executable, "-W", "ignore", "-c", CHILD, note, str(up)]
    supervisor = Supervisor(lambda _slot: argv, 1, on_event=on_event, on_death=died.append, backoff_s=60)

    def kill() -> None:
        until(up.exists, "the child is up")
        pid = supervisor.children()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    supervisor.run()
    thread.join()
    assert died == left
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) <= descriptors, "a note was left open"


def test_without_a_supervisor_there_is_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NOTE_FD, raising=False)
    Note().member("member")
    Note().beat()


# --- The command line -------------------------------------------------------------------------------------------------


def test_a_member_is_chosen_by_its_id_its_client_id_or_a_beginning_that_fits_one() -> None:
    one = GroupMember("app@h-1-aaa", "app@h-1", "10.0.0.1", (0, 1))
    two = GroupMember("app@h-2-bbb", "app@h-2", "10.0.0.2", (2,))
    twin = GroupMember("app@h-2-ccc", "app@h-2", "10.0.0.2", ())
    assert _choose("app@h-1-aaa", [one, two], "g") is one
    assert _choose("app@h-2", [one, two], "g") is two
    assert _choose("app@h-2-b", [one, two, twin], "g") is two
    for text, words in (("app@h-2", "2 members"), ("app", "3 members"), ("", "No member"), ("x", "workers list")):
        with pytest.raises(ConfigError, match=words):
            _choose(text, [one, two, twin], "g")


@pytest.mark.parametrize(
    ("shards", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 3, 7), "0-3,7"), ((1, 3, 4), "1,3-4")], ids=str
)
def test_shards_are_shown_as_ranges(shards: tuple[int, ...], text: str) -> None:
    assert _ranges(shards) == text
