"""No secret of the settings is ever shown: each is set to a text of its own, and nothing that is printed holds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamtask.cli import app

ROOT = Path(__file__).parents[2]
MARK = "gR33nHeron"
#: raw client settings that hold secrets, as librdkafka's own documentation marks them, and those of the registry's client
KAFKA = (
    *("sasl.password", "ssl.key.password", "ssl.key.pem", "ssl.keystore.password", "sasl.oauthbearer.client.secret"),
    *("sasl.oauthbearer.config", "sasl.oauthbearer.assertion.private.key.passphrase"),
    *("sasl.oauthbearer.assertion.private.key.pem", "ssl.certificate.pem", "ssl_key"),
)
REGISTRY = (
    *("basic.auth.user.info", "bearer.auth.token", "bearer.auth.client.secret", "ssl.key.password"),
    *("sasl.password", "http.headers.authorization"),
)
WITHIN_S = 90.0


def secret(number: int) -> str:
    return f"{MARK}{number}"


def _environment(kafka: dict[str, str], **more: str) -> dict[str, str]:
    registry = {name: secret(50 + number) for number, name in enumerate(REGISTRY)}
    return {
        "STREAMTASK_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "STREAMTASK_KAFKA": json.dumps(kafka),
        "STREAMTASK_REGISTRY": json.dumps(registry),
        "STREAMTASK_REGISTRY_URL": f"http://user:{secret(70)}@127.0.0.1:1",
        "STREAMTASK_URL": f"http://user:{secret(71)}@127.0.0.1:1",
        "STREAMTASK_API_KEY": secret(72),
        **more,
    }


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STREAMTASK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def test_the_mark_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMTASK_KAFKA", json.dumps({"client.rack": secret(0)}))
    assert secret(0) in CliRunner().invoke(app, ["config", "show"]).output


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_config_show_hides_every_secret(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    given = {name: secret(number) for number, name in enumerate(KAFKA)}
    for name, value in _environment(given).items():
        monkeypatch.setenv(name, value)
    Path("streamtask.toml").write_text(f'api_key = "{secret(90)}"\n[kafka]\n"sasl.password" = "{secret(91)}"\n')
    found = CliRunner().invoke(app, ["config", "show", *options])
    assert found.exit_code == 0, found.output
    assert MARK not in found.output
    assert found.output.count("(hidden)") >= len(KAFKA) + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STREAMTASK_KAFKA", f'{{"sasl.password": ["{MARK}"]}}'),
        ("STREAMTASK_KAFKA", f"{{sasl.password: {MARK}"),
        ("STREAMTASK_KAFKA", f'"{MARK}"'),
        ("STREAMTASK_REGISTRY", f'{{"basic.auth.user.info": {{"a": "{MARK}"}}}}'),
        ("STREAMTASK_REGISTRY_URL", f"ftp://user:{MARK}@host"),
        ("STREAMTASK_URL", f"ftp://user:{MARK}@host"),
    ],
)
def test_an_error_about_a_setting_does_not_show_its_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("STREAMTASK_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("STREAMTASK_FORMAT", "confluent")
    monkeypatch.setenv(name, value)
    for command in (["config", "show"], ["status", "01939cfa-0000-7000-8000-000000000000"], ["schemas", "check"]):
        for more in ([], ["--debug"]):
            assert MARK not in CliRunner().invoke(app, [*command, *more]).output, command


def test_no_command_and_no_log_shows_a_secret_when_nothing_can_be_reached() -> None:
    """With settings that librdkafka takes, and with a key that it cannot read; also with the stack trace of --debug."""
    plain = {name: secret(number) for number, name in enumerate(KAFKA) if "pem" not in name and name != "ssl_key"}
    broken = {"security.protocol": "SSL", "ssl.key.pem": secret(30), "ssl.certificate.pem": secret(31)}
    worker, submit = ["worker", "tests.acceptance.marked_app:app"], ["submit", "echo", "{}"]
    commands = {
        json.dumps(plain): (worker, submit, ["serve", "--port", "0"], ["doctor"], ["schemas", "check"]),
        json.dumps(broken): (worker, submit),
    }
    started = []
    for kafka, some in commands.items():
        for command in some:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "streamtask", *command, "--debug"],
                    cwd=ROOT,
                    env={**os.environ, **_environment(json.loads(kafka))},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    try:
        for process in started:
            out, _ = process.communicate(timeout=WITHIN_S)
            assert process.returncode not in (None, 0), f"{process.args!r}: {out}"
            assert MARK not in out, f"{process.args!r}: {out}"
    finally:
        for process in started:
            process.kill()
            process.communicate()
