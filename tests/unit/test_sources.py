"""Where settings come from: the file with its lines, the nearest known name, and what may be shown of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from streamtask.config import SETTINGS_FILE, load_settings
from streamtask.config.sources import HIDDEN, is_secret, key_lines, shown, without_secrets
from streamtask.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STREAMTASK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(text: str) -> str:
    Path(SETTINGS_FILE).write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- The file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "near"),
    [
        ("partition = 3", "streamtask.toml:1: 'partition'", "'partitions'"),
        ("# brokers\n\nbootstrap-servers = 'x:1'", "streamtask.toml:3: 'bootstrap-servers'", "'bootstrap_servers'"),
        ("prefix = 'a'\n[kafak]\nx = 1", "streamtask.toml:2: 'kafak'", "'kafka'"),
        ("store = '''\nurl = 1\n'''\nUrl = 'x'", "streamtask.toml:4: 'Url'", "'url'"),
    ],
)
def test_an_unknown_key_of_the_file_is_named_with_its_line_and_the_nearest_known_one(
    text: str, place: str, near: str
) -> None:
    said = refusal(text)
    assert said.startswith(place)
    assert f"the nearest is {near}." in said


def test_an_unknown_key_that_is_like_nothing_is_only_named() -> None:
    assert refusal("zzzzzz = 1") == "streamtask.toml:1: 'zzzzzz' is not a setting."


def test_every_unknown_key_is_named_at_once() -> None:
    said = refusal("hots = '::'\nprot = 1\n")
    assert "'host'" in said
    assert "'port'" in said


def test_a_file_that_is_no_toml_is_one_line_with_the_place() -> None:
    assert refusal("a = [1\nb = 2").startswith("streamtask.toml is not valid TOML: ")
    assert "line 2" in refusal("prefix = 'a'\nb ==\n")


def test_a_file_that_is_no_text_is_one_line() -> None:
    Path(SETTINGS_FILE).write_bytes(b"prefix = '\xff'")
    with pytest.raises(ConfigError, match=r"Cannot read streamtask\.toml"):
        load_settings()


def test_a_raw_setting_without_quotes_is_told_to_be_quoted() -> None:
    assert refusal("[kafka]\n\nlinger.ms = 5") == 'streamtask.toml:3: quote the name: "linger.ms" = …'


def test_a_wrong_value_is_named_once_and_no_secret_is_repeated() -> None:
    assert refusal("partitions = 0").startswith("partitions=0: ")
    said = refusal('[kafka]\n"sasl.password" = ["geheim"]')
    assert "geheim" not in said
    assert said == f"kafka.sasl.password={HIDDEN!r}: Input should be text, a number, true or false"


def test_arguments_win_over_the_environment_over_the_file_and_tables_are_merged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(SETTINGS_FILE).write_text('prefix = "file"\nhost = "file"\nport = 1\n[kafka]\n"a" = 1\n"b" = 1\n')
    monkeypatch.setenv("STREAMTASK_PREFIX", "env")
    monkeypatch.setenv("STREAMTASK_HOST", "env")
    monkeypatch.setenv("STREAMTASK_KAFKA", '{"b": 2}')
    settings = load_settings(prefix="arg")
    assert (settings.prefix, settings.host, settings.port) == ("arg", "env", 1)
    assert settings.kafka == {"a": 1, "b": 2}


def test_the_line_of_each_name_is_found() -> None:
    text = (
        'a = 1\n"b.c" = 2 # x = 1\nd.e = 3\n\n[ f ] # [z]\ng=[\n "h = 1",\n]\ni = """\nj = 1\n"""\n[k."l.m"]\nn = 1\n'
    )
    assert key_lines(text) == {
        ("a",): 1, ("b.c",): 2, ("d",): 3, ("d", "e"): 3, ("f",): 5, ("f", "g"): 6, ("f", "i"): 9,
        ("k", "l.m"): 12, ("k", "l.m", "n"): 13,
    }  # fmt: skip


@given(st.text(max_size=200))
def test_no_text_breaks_the_search_for_lines(text: str) -> None:
    assert all(1 <= line <= len(text.splitlines()) for line in key_lines(text).values())


# --- What may be shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "ssl.key.pem",
        "ssl.key.password",
        "ssl.keystore.password",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "basic.auth.user.info",
        "sasl.jaas.config",
        "some.vendor.API_KEY",
        "aws.session.token",
        "Authorization",
    ],
)
def test_a_name_that_sounds_like_a_secret_hides_its_value(name: str) -> None:
    assert shown(name, "geheim") == HIDDEN
    assert shown("kafka", {name: "geheim"}) == {name: HIDDEN}


@pytest.mark.parametrize(
    "name",
    ["sasl.username", "security.protocol", "linger.ms", "ssl.ca.location", "ssl.key.location", "key.serializer"],
)
def test_what_is_no_secret_is_shown(name: str) -> None:
    assert not is_secret(name)
    assert shown(name, "x") == "x"


def test_a_secret_string_is_hidden_under_any_name_and_nothing_is_not() -> None:
    assert shown("x", SecretStr("geheim")) == HIDDEN
    assert shown("api_key", None) is None
    assert shown("sasl.password", "") == ""


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("http://h:1/x?a=1", "http://h:1/x?a=1"),
        ("https://user:geheim@h:1/x", "https://***@h:1/x"),
        ("https://geheim@h", "https://***@h"),
        ("https://u:ge@he/im@h/x", "https://***@h/x"),
        ("https://u:ge,heim@h/x", "https://***@h/x"),
        ("https://u:geheim@a,https://b,https://v:geheim@c", "https://***@a,https://b,https://***@c"),
        ("https://h/x?token=geheim&n=1&Key=geheim", "https://h/x?token=***&n=1&Key=***"),
        ("h:9092,i:9092", "h:9092,i:9092"),
    ],
)
def test_a_url_is_shown_without_who_logs_in(url: str, safe: str) -> None:
    assert without_secrets(url) == safe
    assert shown("registry_url", url) == safe


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=12, max_size=30))
def test_no_password_in_a_url_is_ever_shown(password: str) -> None:
    assert password not in without_secrets(f"http://user:{password}@host:8081/path")
