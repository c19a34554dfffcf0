"""Where settings come from and which parts may be shown: the file and its line numbers, the environment, redaction.

Always true: a file that is not valid settings (not TOML, or an unknown name) is refused before anything starts, in one
line that gives the place; `shown` hides every secret that it recognises by its name or its place in a URL, and hides too
much rather than too little.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamtask.errors import ConfigError

ENVIRONMENT_PREFIX = "STREAMTASK_"
NESTED = "__"
HIDDEN = "(hidden)"

Place = tuple[str, ...]  # a name, or a table's name and a name in it

_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*""")
_HEADER = re.compile(rf"\s*\[{_KEY.pattern}\]")
_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([\w-]+))\s*(?:\.|\Z)""")
_SECRET_WORDS = (
    *("password", "passwd", "passphrase", "secret", "token", "credential", "jaas", ".pem", "user.info"),
    *("oauthbearer.config", "authorization", "api.key", "apikey", "access.key", "private.key"),
)
_PLACES = (".location", ".url", ".file", ".path", ".type")  # the place of a secret, not the secret itself: shown


class SettingsFile(NamedTuple):
    """The contents of a settings file. lines: the line number of each name, from 1."""

    path: Path
    values: dict[str, Any]
    lines: dict[Place, int]

    def where(self, *place: str) -> str:
        """`streamtask.toml:3`."""
        line = self.lines.get(place) or self.lines.get(place[:1])
        return f"{self.path}:{line}" if line else str(self.path)


def read_file(path: Path, known: Collection[str], tables: Collection[str]) -> SettingsFile | None:
    """The settings of a file; None when there is none. Raises ConfigError.

    known   the names of all settings
    tables  those of them that are tables of raw settings
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    file = SettingsFile(path, values, key_lines(text))
    problems = [*_unknown(file, known), *_nested(file, tables)]
    if problems:
        raise ConfigError(" ".join(problems))
    return file


def _unknown(file: SettingsFile, known: Collection[str]) -> list[str]:
    return [
        f"{file.where(name)}: {name!r} is not a setting{nearest(name, known)}."
        for name in file.values
        if name not in known
    ]


def _nested(file: SettingsFile, tables: Collection[str]) -> list[str]:
    """Errors for raw settings whose names have dots and no quotes: TOML reads such a name as nested tables."""
    out = []
    for table in tables:
        held = file.values.get(table)
        for name, value in held.items() if isinstance(held, dict) else ():
            if isinstance(value, dict):
                path = [name]
                while isinstance(value, dict) and value:
                    inner = next(iter(value))
                    path.append(inner)
                    value = value[inner]
                out.append(f'{file.where(table, *path)}: quote the name: "{".".join(path)}" = …')
    return out


def nearest(name: str, known: Collection[str]) -> str:
    """`; the nearest is 'partitions'`, or an empty string."""
    table = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), table, n=1, cutoff=0.5)
    return f"; the nearest is {table[near[0]]!r}" if near else ""


def key_lines(text: str) -> dict[Place, int]:
    """The line of each name in a TOML text that tomllib has parsed. Lines inside multi-line strings are skipped."""
    lines: dict[Place, int] = {}
    table: Place = ()
    quotes = ""  # the quotes that end the current multi-line string
    for number, line in enumerate(text.splitlines(), 1):
        if quotes:
            if quotes in line:
                quotes = ""
            continue
        if header := _HEADER.match(line):
            table = _parts(header[1])
            lines.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key is None or line[key.end() : key.end() + 1] != "=":
            continue
        place = (*table, *_parts(key[1]))
        for length in range(len(table) + 1, len(place) + 1):
            lines.setdefault(place[:length], number)
        value = line[key.end() + 1 :].strip()
        for mark in ('"""', "'''"):
            if value.startswith(mark) and mark not in value[3:]:
                quotes = mark
    return lines


def _parts(key: str) -> Place:
    return tuple(double or single or bare for double, single, bare in _PART.findall(key))


# --- Environment ------------------------------------------------------------------------------------------------------


def variable(environment: Mapping[str, str], *place: str) -> str | None:
    """The spelling of the environment variable that sets this; pydantic-settings ignores case."""
    wanted = (ENVIRONMENT_PREFIX + NESTED.join(place)).upper()
    return next((name for name in environment if name.upper() == wanted), None)


# --- What may be shown ------------------------------------------------------------------------------------------------


def is_secret(name: str) -> bool:
    """Judged by its name: passwords, keys and tokens are secrets; the location of one is not."""
    name = name.lower().replace("_", ".")
    if name.endswith(_PLACES):
        return False
    return name.startswith("ssl.key") or any(word in name for word in _SECRET_WORDS)


def shown(name: str, value: Any) -> Any:
    """`value` of the setting `name` as it may be printed."""
    if value in (None, ""):
        return value
    if hasattr(value, "get_secret_value") or is_secret(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {inner: shown(inner, held) for inner, held in value.items()}
    if isinstance(value, list | tuple):
        return [shown(name, held) for held in value]
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """The text with URLs stripped of credentials and of parameters that look like secrets."""
    if "://" not in text:
        return text
    # Up to the last @: a password may contain any character. A list of URLs is split only between two of them.
    urls = re.split(r",(?=[\w+.-]+://)", text)
    urls = [re.sub(r"(?<=://).*@", "***@", url, flags=re.S) for url in urls]
    return ",".join(re.sub(r"([?&;]([^=&;#]+)=)([^&;#]*)", _parameter, url) for url in urls)


def _parameter(found: re.Match[str]) -> str:
    secret = is_secret(found[2]) or found[2].lower() in ("key", "sig", "signature", "auth")
    return f"{found[1]}***" if secret else found[0]
