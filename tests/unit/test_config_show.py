"""`streamtask config show`, and what the shell completes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamtask.cli import app
from streamtask.cli.complete import app_names, task_types
from streamtask.config import Settings

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STREAMTASK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def show(*arguments: str) -> tuple[str, dict[str, tuple[Any, str, str]], dict[str, Any]]:
    """(text, {setting: (value, kind, where)}, the whole document)."""
    text = CliRunner().invoke(app, ["config", "show", *arguments])
    found = CliRunner().invoke(app, ["config", "show", "--json", *arguments])
    assert text.exit_code == found.exit_code == 0, text.stderr + found.stderr
    document = json.loads(found.stdout)
    rows = {r["name"]: (r["value"], r["source"]["kind"], r["source"]["where"]) for r in document["settings"]}
    return text.stdout, rows, document


# --- config show ------------------------------------------------------------------------------------------------------


def test_every_setting_is_shown_with_its_default() -> None:
    _, rows, document = show()
    assert list(rows) == list(Settings.model_fields)
    assert {kind for _, kind, _ in rows.values()} == {"default"}
    assert rows["partitions"][0] == Settings.model_fields["partitions"].default
    assert document["file"] is None


def test_each_setting_tells_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("streamtask.toml").write_text(
        'prefix = "file"\nport = 1\nhost = "file"\n\n[kafka]\n"security.protocol" = "SSL"\n"linger.ms" = 5\n"a" = 1\n'
    )
    Path("shown_app.py").write_text(
        "from streamtask import App\napp = App('shop', host='app', kafka={'linger.ms': 7})\n"
    )
    monkeypatch.setenv("STREAMTASK_PORT", "2")
    monkeypatch.setenv("streamtask_threads", "3")  # pydantic-settings does not look at the case
    monkeypatch.setenv("STREAMTASK_KAFKA", '{"a": 2, "b": 2}')
    monkeypatch.setenv("STREAMTASK_KAFKA__C", "x")
    text, rows, document = show("shown_app:app", "--prefix", "arg")
    assert rows["prefix"] == ("arg", "argument", "--prefix")
    assert rows["host"] == ("app", "app", "App('shop', …)")
    assert rows["port"] == (2, "environment", "STREAMTASK_PORT")
    assert rows["threads"] == (3, "environment", "streamtask_threads")
    assert rows["kafka.security.protocol"] == ("SSL", "file", "streamtask.toml:6")
    assert rows["kafka.linger.ms"] == (7, "app", "App('shop', …)")
    assert rows["kafka.a"] == (2, "environment", "STREAMTASK_KAFKA")
    assert rows["kafka.b"] == (2, "environment", "STREAMTASK_KAFKA")
    assert rows["kafka.c"] == ("x", "environment", "STREAMTASK_KAFKA__C")
    assert document["file"] == str(tmp_path / "streamtask.toml")
    (line,) = [line for line in text.splitlines() if line.startswith("kafka.security")]
    assert line.split() == ["kafka.security.protocol", "SSL", "streamtask.toml:6"]


def test_what_is_shown_is_what_a_worker_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are explained, not computed: their values are those of the settings that were loaded."""
    Path("streamtask.toml").write_text("drain_grace_s = 7\n")
    monkeypatch.setenv("STREAMTASK_DRAIN_GRACE_S", "8")
    _, rows, _ = show()
    assert rows["drain_grace_s"] == (Settings().drain_grace_s, "environment", "STREAMTASK_DRAIN_GRACE_S")


def test_no_secret_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("streamtask.toml").write_text(
        'registry_url = "https://user:geheim@registry:8081"\nurl = "http://geheim@h:1/?token=geheim"\n'
        '[kafka]\n"sasl.password" = "geheim"\n"ssl.key.pem" = "geheim"\n"my.vendor.secret" = "geheim"\n'
        '"sasl.username" = "worker"\n[registry]\n"basic.auth.user.info" = "user:geheim"\n'
    )
    monkeypatch.setenv("STREAMTASK_API_KEY", "geheim")
    text, rows, document = show()
    assert "geheim" not in text
    assert "geheim" not in json.dumps(document)
    assert rows["kafka.sasl.username"][0] == "worker"
    assert rows["api_key"] == ("(hidden)", "environment", "STREAMTASK_API_KEY")
    assert rows["registry_url"][0] == "https://***@registry:8081"
    given = CliRunner().invoke(app, ["config", "show", "--api-key", "geheim"])
    assert "geheim" not in given.stdout


def test_a_misspelled_variable_is_named_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMTASK_BOOTSTRAP_SERVER", "x:1")
    monkeypatch.setenv("STREAMTASK_CACHE", "known, and no setting")
    text, _, document = show()
    said = "STREAMTASK_BOOTSTRAP_SERVER is not a setting; the nearest is 'STREAMTASK_BOOTSTRAP_SERVERS'"
    assert document["unknown_variables"] == [said]
    assert said in text


def test_settings_that_cannot_be_loaded_are_one_line() -> None:
    Path("streamtask.toml").write_text("partition = 3\n")
    done = CliRunner().invoke(app, ["config", "show"])
    assert done.exit_code == 2
    assert done.stderr == "Error: streamtask.toml:1: 'partition' is not a setting; the nearest is 'partitions'.\n"


# --- Completion -------------------------------------------------------------------------------------------------------


def streamtask(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamtask", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def completed(line: str) -> list[str]:
    """What bash would offer after this line."""
    words = line.split(" ")
    environment = {
        "_STREAMTASK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = streamtask(**environment)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_is_produced(shell: str) -> None:
    # Without the switch the shell that runs this is found out, whatever is asked for.
    done = streamtask("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert f"complete_{shell}" in done.stdout
    assert "_STREAMTASK_COMPLETE" in done.stdout
    if shutil.which(shell):
        parsed = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, parsed.stderr


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", ".bash_completions/streamtask.sh"),
        ("zsh", ".zfunc/_streamtask"),
        ("fish", ".config/fish/completions/streamtask.fish"),
    ],
)
def test_completion_is_installed_for_each_shell(shell: str, place: str, tmp_path: Path) -> None:
    done = streamtask(
        "--install-completion", shell, HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 0, done.stderr
    assert f"complete_{shell}" in (tmp_path / place).read_text()


def test_the_script_of_bash_completes_in_bash() -> None:
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    script = streamtask("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    Path("streamtask").write_text(f'#!/bin/sh\nexec {sys.executable} -m streamtask "$@"\n')
    Path("streamtask").chmod(0o755)
    typed = "COMP_WORDS=(streamtask wor); COMP_CWORD=1; _streamtask_completion streamtask; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\nPATH=$PWD:$PATH\n{typed}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["worker", "workers"], done.stderr


def test_commands_options_and_values_are_completed() -> None:
    assert completed("streamtask wor") == ["worker", "workers"]
    assert completed("streamtask dead ") == ["list", "show", "redrive"]
    assert "--prefix" in completed("streamtask list --pre")
    assert completed("streamtask list --status c") == ["created", "completed", "cancelled"]


def test_apps_and_task_types_are_completed_from_the_files_without_running_them() -> None:
    Path("shop").mkdir()
    Path("app.py").write_text(
        "import streamtask\nraise SystemExit('nobody imports me')\napp = streamtask.App('a')\nother = 1\n"
        "@app.task\ndef resize(): ...\n@app.task('re-charge', timeout=3)\nasync def x(): ...\n@app.task(NAME)\ndef y(): ...\n"
    )
    Path("shop/tasks.py").write_text(
        "from streamtask import App\nshop = App('b')\n@shop.task(timeout=3)\ndef pay(): ...\n"
    )
    Path("broken.py").write_text("from streamtask import App\napp = App(\n")
    Path(".venv").mkdir()
    Path(".venv/hidden.py").write_text("from streamtask import App\napp = App('hidden')\n")
    assert completed("streamtask worker ") == ["app:app", "shop.tasks:shop"]
    assert completed("streamtask dev sh") == ["shop.tasks:shop"]
    assert completed("streamtask submit re") == ["re-charge", "resize"]
    assert completed("streamtask list --type p") == ["pay"]


def test_there_is_no_completion_where_nothing_is() -> None:
    assert app_names("") == []
    assert task_types("") == []
