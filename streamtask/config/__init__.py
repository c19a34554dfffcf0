"""Topic names, engine limits, and the settings of all entry points.

Precedence: arguments > STREAMTASK_* environment > streamtask.toml (in the working directory) > defaults. Settings are
frozen and validated when they are created; an invalid one raises a ConfigError that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from streamtask.config.container import cores
from streamtask.config.kafka import ClientRole, KafkaSettings, client_id
from streamtask.config.sources import ENVIRONMENT_PREFIX, HIDDEN, NESTED, SettingsFile, read_file, shown
from streamtask.domain.model import BANDS, Band, HandlerKind, TaskPolicy, unknown_fields
from streamtask.domain.options import NOT_BEFORE_MAX_S
from streamtask.errors import ConfigError
from streamtask.public import public

PREFIX_MAX = 60
PARTITIONS_DEFAULT = 12
PROCESSES_MAX = 256
CHILDREN_MIN, CHILDREN_MAX = 2, 1_000  # of two or more, one is reserved for the high band (core/schedule.py)
SETTINGS_FILE = "streamtask.toml"
_PREFIX = re.compile(r"[A-Za-z0-9._]+\Z")
_TOPIC_OF_A_PREFIX = re.compile(r"\.(?:requests\.[^.]+|status|control|schedule|dead)\Z")
PREFIX_DEFAULT = "tasks"


def prefix_of(topic: str) -> str:
    """The prefix of a topic that TopicNames names: `shop` of `shop.requests.high`."""
    return _TOPIC_OF_A_PREFIX.sub("", topic)


@public
@dataclass(frozen=True, slots=True)
class TopicNames:
    """The topics and the consumer group of one prefix. The group's name is derived: a prefix has one group."""

    prefix: str = PREFIX_DEFAULT
    bands: tuple[Band, ...] = BANDS

    def __post_init__(self) -> None:
        if not _PREFIX.match(self.prefix) or len(self.prefix) > PREFIX_MAX:
            raise ConfigError(
                f"prefix={self.prefix!r}: use 1..{PREFIX_MAX} of letters, digits, '.' and '_' (Kafka topic names)."
            )

    @property
    def requests(self) -> tuple[str, ...]:
        """One topic per band, in the order of the bands; the first is the lead topic."""
        return tuple(f"{self.prefix}.requests.{band.name}" for band in self.bands)

    @property
    def status(self) -> str:
        return f"{self.prefix}.status"

    @property
    def control(self) -> str:
        return f"{self.prefix}.control"

    @property
    def schedule(self) -> str:
        return f"{self.prefix}.schedule"

    @property
    def dead(self) -> str:
        return f"{self.prefix}.dead"

    @property
    def group(self) -> str:
        return f"{self.prefix}.workers"

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.requests, self.status, self.control, self.schedule, self.dead)

    def band_of(self, priority: int) -> int:
        """Index of the band whose range contains this priority (1..10)."""
        for index, band in enumerate(self.bands):
            if band.priority_min <= priority <= band.priority_max:
                return index
        raise ConfigError(f"priority {priority} is in no band")

    def band_named(self, name: str) -> int | None:
        """Index of the band with this name, or None."""
        for index, band in enumerate(self.bands):
            if band.name == name:
                return index
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of one worker process. slots: concurrent executions per kind of handler."""

    bands: tuple[Band, ...] = BANDS
    policies: Mapping[str, TaskPolicy] = field(default_factory=dict)
    slots: Mapping[HandlerKind, int] = field(
        default_factory=lambda: {HandlerKind.ASYNC: 100, HandlerKind.THREAD: 16, HandlerKind.PROCESS: 0}
    )
    worker: str = "worker"  # written into status events
    created_wait_ms: int = 20  # CREATED of waiting requests is written with other events, or alone after this time
    events_max: int = 3_000  # closes a batch early; bounds the memory of one transaction
    batch_bytes_max: int = 16_000_000  # bounds its results and dead letters
    backlog_max: int = 150  # records of one cell held beyond its ledger's limit before the cell is paused
    backlog_bytes_max: int = 4_000_000  # and their bytes
    waiting_bytes_max: int = 80 << 20  # for requests, from fetch to end (core/memory.py); see worker/memory_budget.py
    active_bytes_max: int = 80 << 20  # decoded parameters of running tasks, and results that are not committed yet
    backlog_low: int = 50  # a cell resumes below this; pausing discards the prefetched records (5 ms)
    progress_ms: int = 100  # minimum time between two progress events of a task
    ageing_ms: int = 30_000  # a band gets one more turn a round for each such period that its oldest request waits
    unknown_type_grace_ms: int = 300_000  # rolling deploys: another worker may soon know the type
    not_before_max_ms: int = NOT_BEFORE_MAX_S * 1_000
    begin_ms: int = 60_000  # if a child has not begun by then, run elsewhere; one starts in 0.3 s, or 5 s at load 40
    refresh_ms: int = 30 * 86_400_000 // 4  # a quarter of the status retention: the last event is published again
    trial_ms: int = 10_000  # first trial of a suspect (lost >= 2); 16 times as long after an acquittal
    trial_max_ms: int = 3_600_000
    alone_ms: int = 30_000  # longest wait of a trial that must run alone for running tasks to end; nothing else starts
    cancels_max: int = 1_000_000  # ids from tasks.control that are kept (16 bytes each)


@public
class Settings(BaseSettings):
    """Everything that can be set from outside. Environment: STREAMTASK_<NAME>, nested with `__`."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=NESTED, extra="ignore", frozen=True
    )

    bootstrap_servers: str | None = Field(default=None, description="Kafka brokers, `host:port`, separated by commas")
    prefix: str = Field(
        default=PREFIX_DEFAULT, description="first part of the names of all topics and of the consumer group"
    )
    partitions: int = Field(
        default=PARTITIONS_DEFAULT,
        ge=1,
        le=10_000,
        description="of topics that `topics create` makes; at most as many worker processes can be busy",
    )
    locale: Literal["en", "zh"] = Field(default="en", description="language of default messages in status events")
    processes: int | None = Field(
        default=None,
        ge=1,
        le=PROCESSES_MAX,
        description="worker processes of one `streamtask worker`; default: one per core that it may use",
    )
    concurrency: int = Field(default=100, ge=1, le=100_000, description="concurrent async handlers per worker process")
    threads: int = Field(default=16, ge=1, le=10_000, description="concurrent thread handlers per worker process")
    children: int | None = Field(
        default=None,
        ge=1,
        le=CHILDREN_MAX,
        description="concurrent process handlers per worker process, each in a child; default: the cores, divided among "
        "the processes, at least 2",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=32,
        le=1_000_000,
        description="MiB per worker process for requests, results and records read ahead; default: half of the "
        "container's limit, divided among the processes, up to 1024; without a limit 256",
    )
    kill_grace_s: float = Field(
        default=2.0, ge=0, le=60, description="seconds between SIGTERM and SIGKILL when a child must stop"
    )
    drain_grace_s: float = Field(
        default=30.0, ge=0, description="seconds that running tasks get when a worker must stop"
    )
    silent_s: float = Field(
        default=30.0,
        ge=3,
        description="the supervisor kills and replaces a worker process without a sign of life for this long",
    )
    session_timeout_ms: int = Field(
        default=6_000, ge=1, description="a worker that the broker has not heard of for this long loses its shards"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="port of a worker's /metrics, /health, /ready, plus its slot; 0: any free port; default: off",
    )
    metrics_host: str = Field(default="127.0.0.1", description="address that metrics_port listens on")
    health_stalled_s: float = Field(
        default=300.0,
        gt=0,
        description="/health returns 503 when work waits and nothing starts, ends or reports for this long",
    )
    unknown_type_grace_s: float = Field(
        default=300.0, ge=0, description="how long a task of an unknown type waits for a worker that knows it"
    )
    kafka: dict[str, str | int | float | bool] = Field(default_factory=dict, description="raw client settings")
    tracebacks: Literal["events", "dead", "off"] = Field(
        default="events",
        description="where tracebacks are kept: in status events, only in dead letters, or nowhere",
    )
    url: str | None = Field(
        default=None, description="query service: http://127.0.0.1:8080; ws://… to follow tasks by WebSocket"
    )
    host: str = Field(
        default="127.0.0.1",
        description="address that the query service listens on; others than loopback need `api_key`",
    )
    port: int = Field(default=8080, ge=0, le=65_535, description="port of the query service; 0: any free port")
    allowed_hosts: str = Field(
        default="",
        description="comma-separated host names of the query service: `tasks.example.com`, `*.example.com`, or `*` for "
        "any; localhost, IP addresses and `host` are always allowed",
    )
    api_key: SecretStr | None = Field(
        default=None, description="key that the query service asks for, and that clients send to it; default: none"
    )
    store: Path | None = Field(default=None, description="SQLite file of the query service; default: a temporary file")
    body_bytes_max: int = Field(default=1_000_000, ge=1_000, description="largest body that the query service accepts")
    format: Literal["json", "avro", "confluent"] = Field(
        default="json", description="format of written records; all three can be read"
    )
    registry_url: str | None = Field(default=None, description="schema registry with Confluent's API, or mock://NAME")
    registry: dict[str, str | int | float | bool] = Field(default_factory=dict, description="raw registry settings")
    registry_wait_s: float = Field(default=5.0, ge=0, le=15, description="how long to wait for an unknown schema id")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = settings_file()
        return init_settings, env_settings, InitSettingsSource(settings_cls, file.values if file is not None else {})

    @property
    def children_max(self) -> int:
        """`children`, or else one per core, for a worker process that shares the cores with no other."""
        return self.children or default_children(cores().count)

    @property
    def topics(self) -> TopicNames:
        return TopicNames(self.prefix)

    @property
    def hosts_allowed(self) -> tuple[str, ...]:
        """The names in `allowed_hosts`."""
        return tuple(name for part in self.allowed_hosts.split(",") if (name := part.strip()))

    def bootstrap(self) -> str:
        """The broker's address. Raises ConfigError when none is configured."""
        if not self.bootstrap_servers:
            raise ConfigError(
                "No Kafka broker is configured. Set STREAMTASK_BOOTSTRAP_SERVERS or pass --bootstrap HOST:PORT."
            )
        return self.bootstrap_servers

    def kafka_for(self, role: ClientRole, *, process: str | None = None) -> KafkaSettings:
        """The settings of all Kafka clients of one role: the broker, the client.id, and those in `kafka` (security).

        process  distinguishes this process from others of its role; for a worker it is `<app>@<host>-<pid>`

        Raises ConfigError when no broker is configured.
        """
        kafka = KafkaSettings(self.bootstrap(), client_id=client_id(role, process), extra=self.kafka)
        # The other roles join no group: a session timeout that is too short for a worker does not concern them.
        return replace(kafka, session_timeout_ms=self.session_timeout_ms) if role == "worker" else kafka


def default_children(cores: int, processes: int = 1) -> int:
    """How many children each of these worker processes has if `children` is not set."""
    return min(max(CHILDREN_MIN, cores // processes), CHILDREN_MAX)


def settings_file() -> SettingsFile | None:
    """The settings file of the working directory; None: it does not exist. Raises ConfigError when it is not valid."""
    return read_file(Path(SETTINGS_FILE), Settings.model_fields, raw_tables())


def raw_tables() -> tuple[str, ...]:
    """The settings that are tables of raw settings for a library."""
    return tuple(name for name, field in Settings.model_fields.items() if get_origin(field.annotation) is dict)


def load_settings(**arguments: Any) -> Settings:
    """Settings from all sources; arguments that are None count as not given. Raises ConfigError."""
    unknown = unknown_fields(Settings, arguments)
    if unknown:
        raise ConfigError("; ".join(f"{name}: {advice}" for name, advice in unknown.items()))
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(_wrong(error))) from None


def _wrong(error: ValidationError) -> list[str]:
    """One text per invalid setting. pydantic reports a setting with several possible types once for each type."""
    wrong = {}
    for one in error.errors():
        place = [str(part) for part in one["loc"][:2]]
        why = one["msg"] if len(one["loc"]) <= 2 else "Input should be text, a number, true or false"
        # A value in place of a table may be the contents of the table, with a misspelled name.
        safe = HIDDEN if len(place) == 1 and place[0] in raw_tables() else shown(place[-1], one.get("input"))
        wrong[".".join(place)] = f"{'.'.join(place)}={safe!r}: {why}"
    return list(wrong.values())
