"""Fast failover: the member of a dead worker process is removed from the group, so that its shards move now.

Without it they move when the session timeout is over; that stays the guarantee, this is best effort. confluent-kafka has
no such call, so a second client makes it: kafka-python, extra `[failover]`. What stays true: only ids that a dead process
(or an operator) named are removed; nobody waits for it; what cannot work is said once, at the start, with its reason.

A security setting is either mapped onto kafka-python's own or named as unmapped, and then this is off: a client that
connects with less than it was told would be worse than a wait.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from streamtask.config.kafka import KafkaSettings
from streamtask.errors import ClusterError, ConfigError, StreamtaskError, Unreachable
from streamtask.observability import event_log

INSTALL = "pip install 'streamtask[failover]'"
CALL_S = 3.0  # one connect, and one request
RETRY_S, RETRY_MAX_S = 0.2, 2.0
KEEP_S = 45.0  # between two looks at the connection: brokers and NATs drop what is idle for minutes
DEATHS_MAX = 1_000  # waiting to be removed; far above any number of processes

# librdkafka's name → kafka-python's, where the value means the same.
SAME: Mapping[str, str] = {
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
# GSSAPI is not: tickets are kinit's, inside the other client.
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
# Belong to Kerberos and OAuth alone, which are refused as mechanisms; set beside another one they mean nothing.
IDLE_PARTS = ("sasl.kerberos.", "sasl.oauthbearer.", "enable.sasl.oauthbearer.")


def mapped(properties: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """librdkafka's properties as kafka-python's configuration.

    Returns (configuration, what cannot be mapped: each a name, with its value where that is no secret). Only what decides
    about reaching the brokers is looked at, and of that only what the security protocol uses.
    """
    servers = str(properties.get("bootstrap.servers") or properties.get("metadata.broker.list") or "")
    protocol = str(properties.get("security.protocol") or "PLAINTEXT").upper()
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in servers.split(",") if server.strip()],
        "client_id": str(properties.get("client.id") or "streamtask"),
        "security_protocol": protocol,
    }
    if protocol not in PROTOCOLS:
        return config, [f"security.protocol={protocol}"]
    unmapped: list[str] = []
    if protocol.startswith("SASL"):
        unmapped += _sasl(properties, config)
    if protocol.endswith("SSL"):
        unmapped += _tls(properties, config)
    return config, unmapped


def _sasl(properties: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    names = [name for name in properties if name.startswith(("sasl.", "enable.sasl."))]
    mechanism = str(properties.get("sasl.mechanism") or properties.get("sasl.mechanisms") or "GSSAPI").upper()
    if mechanism not in MECHANISMS:
        return [f"sasl.mechanism={mechanism}"]
    config["sasl_mechanism"] = mechanism
    unmapped = []
    if mechanism == "OAUTHBEARER":
        # Tokens that librdkafka fetches by itself are inside it; those of the user's own function are for both.
        callback = properties.get("oauth_cb")
        if not callable(callback) or str(properties.get("sasl.oauthbearer.method") or "default").lower() != "default":
            return ["sasl.mechanism=OAUTHBEARER"]
        config["sasl_oauth_token_provider"] = _tokens(callback, str(properties.get("sasl.oauthbearer.config") or ""))
    for name in names:
        if name in SAME:
            config[SAME[name]] = str(properties[name])
        elif name not in ("sasl.mechanism", "sasl.mechanisms") and not name.startswith(IDLE_PARTS):
            unmapped.append(name)
    return unmapped


def _tokens(callback: Callable[[str], tuple[Any, ...]], given: str) -> Any:
    """kafka-python's way to ask for a token: it connects rarely, so a fresh one each time."""
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class Tokens(AbstractTokenProvider):  # type: ignore[misc]
        def token(self) -> str:
            return str(callback(given)[0])

        def extensions(self) -> dict[str, str]:
            told = callback(given)
            return dict(told[3]) if len(told) > 3 and told[3] else {}

    return Tokens()


def _tls(properties: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    unmapped = []
    for name in [name for name in properties if name.startswith(("ssl.", "enable.ssl."))]:
        value = properties[name]
        match name:
            case "ssl.ca.location" if value == "probe":
                pass  # the system's own, which is kafka-python's default
            case "ssl.ca.location" if os.path.isdir(value):
                unmapped.append(f"{name}={value} (a directory)")
            case "ssl.endpoint.identification.algorithm" if str(value).lower() in ("https", "none"):
                config["ssl_check_hostname"] = str(value).lower() == "https"
            case "enable.ssl.certificate.verification" if str(value).lower() == "true":
                pass
            case _ if name in SAME:
                config[SAME[name]] = str(value)
            case _:
                unmapped.append(name)
    return unmapped


def configuration(settings: KafkaSettings) -> dict[str, Any]:
    """kafka-python's configuration for these brokers. Raises ConfigError when a setting cannot be mapped, or the extra
    is not installed."""
    _client_class()
    config, unmapped = mapped(settings.admin())
    if unmapped:
        raise ConfigError(f"kafka-python does not support {', '.join(unmapped)}")
    return config


def _client_class() -> Any:
    try:
        from kafka.admin import KafkaAdminClient
    except ImportError:
        raise ConfigError(f"kafka-python is not installed: {INSTALL}") from None
    if not hasattr(KafkaAdminClient, "remove_group_members"):
        raise ConfigError(f"this kafka-python is older than 3.0 and cannot remove members: {INSTALL}")
    return KafkaAdminClient


def _connected(config: Mapping[str, Any]) -> tuple[Any, Callable[[], None]]:
    """(admin client, what lets it go). Raises kafka-python's errors within CALL_S or so."""
    admin_class = _client_class()
    network = admin_class.DEFAULT_CONFIG["kafka_client"]
    made: list[Any] = []

    def make(**given: Any) -> Any:
        made.append(network(**given))
        return made[-1]

    limits = {"bootstrap_timeout_ms": int(CALL_S * 1_000), "request_timeout_ms": int(CALL_S * 1_000)}
    try:
        client = admin_class(**config, **limits, reconnect_backoff_max_ms=1_000, kafka_client=make)
    except BaseException:
        for one in made:  # its I/O thread runs already, and nobody else can reach it
            one.close()
        raise
    return client, client.close


def remove_members(settings: KafkaSettings, group: str, members: Sequence[str], *, reason: str) -> dict[str, bool]:
    """Remove members from the group, in one request. {member id: True, or False when the group did not know it}.

    Raises ConfigError (not installed, a setting without a counterpart), Unreachable, or ClusterError.
    """
    remover = _Remover(configuration(settings), group)
    try:
        return remover.remove(members, reason)
    finally:
        remover.close()


class _Remover:
    """Removes members of one group through a client that stays connected: to connect takes longer than to remove. Used by
    one thread."""

    def __init__(self, config: Mapping[str, Any], group: str) -> None:
        self._config, self._group = config, group
        self._client: Any = None
        self._close: Callable[[], None] = lambda: None

    def connect(self) -> None:
        """Connect, and to the group's coordinator, or see that it still is. Raises kafka-python's errors."""
        if self._client is None:
            self._client, self._close = _connected(self._config)
        try:
            self._client.describe_groups([self._group])
        except BaseException:
            self.close()
            raise

    def remove(self, members: Collection[str], reason: str) -> dict[str, bool]:
        """As remove_members."""
        from kafka.admin import MemberToRemove
        from kafka.errors import KafkaError

        wanted = [MemberToRemove(member_id=member, reason=reason) for member in members]
        kept = self._client is not None
        try:
            if self._client is None:
                self._client, self._close = _connected(self._config)
            answers = self._client.remove_group_members(self._group, wanted)
        except (KafkaError, OSError) as error:  # a connect or a TLS file that cannot be read is an OSError
            self.close()
            if kept:  # its connection may have died unnoticed
                return self.remove(members, reason)
            kind = Unreachable if isinstance(error, OSError) or getattr(error, "retriable", False) else ClusterError
            raise kind(f"{','.join(self._config['bootstrap_servers'])}: {type(error).__name__}: {error}") from error
        names = {member: getattr(answer, "__name__", str(answer)) for member, answer in answers.items()}
        refused = {member: name for member, name in names.items() if name not in ("NoError", "UnknownMemberIdError")}
        if refused:
            told = ", ".join(f"{m}: {name}" for m, name in refused.items())
            raise ClusterError(f"group {self._group} did not remove {told}")
        return {member: name == "NoError" for member, name in names.items()}

    def close(self) -> None:
        close, self._client, self._close = self._close, None, lambda: None
        close()


class Failover:
    """Removes the members of dead processes, in a thread of its own.

    window_s  how long after a death it is worth trying: the session timeout, after which the broker does it itself

    Off, with one log line that says why, when the extra is missing or a setting has no counterpart.
    """

    def __init__(self, settings: KafkaSettings, group: str, *, window_s: float) -> None:
        self._group, self._window_s = group, window_s
        self._deaths: queue.Queue[tuple[str, float] | None] = queue.Queue(DEATHS_MAX)
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        try:
            self._remover = _Remover(configuration(settings), group)
        except ConfigError as error:
            # Not to have asked for it is normal; settings that rule it out are worth a look.
            name = "failover_off" if INSTALL in str(error) else "failover_unmapped"
            event_log.emit(name, {"why": str(error), "session_timeout_s": window_s})
            return
        self._thread = threading.Thread(target=self._run, name="failover", daemon=True)
        self._thread.start()

    @property
    def on(self) -> bool:
        return self._thread is not None

    def died(self, member: str) -> None:
        """A process that was this member is dead. Returns at once."""
        if self._thread is None:
            return
        try:
            self._deaths.put_nowait((member, time.monotonic()))
        except queue.Full:
            event_log.emit("member_not_removed", {"members": [member], "why": f"{DEATHS_MAX} others wait"})

    def close(self, timeout_s: float) -> None:
        """What waits gets one try and this time."""
        if self._thread is None:
            return
        self._closing.set()
        try:
            self._deaths.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._prove()
        try:
            while (death := self._next()) is not None:
                deaths = dict([death])
                while not self._deaths.empty():  # the only reader: a fall of many is one request
                    more = self._deaths.get()
                    if more is None:
                        self._clear(deaths)
                        return
                    deaths.update([more])
                self._clear(deaths)
        finally:
            with contextlib.suppress(Exception):  # whatever the second client raises
                self._remover.close()

    def _next(self) -> tuple[str, float] | None:
        """The next death, with the connection kept alive until it comes; None: no more."""
        while True:
            try:
                return self._deaths.get(timeout=KEEP_S)
            except queue.Empty:
                with contextlib.suppress(Exception):  # tried again, and at a death
                    self._remover.connect()

    def _prove(self) -> None:
        """Connect, so that wrong settings are seen before somebody has died."""
        try:
            self._remover.connect()
        except Exception as error:  # noqa: BLE001 whatever the second client raises must not end this thread
            event_log.emit("failover_unproven", {"why": f"{type(error).__name__}: {error}"})
        else:
            event_log.emit("failover_ready", {"group": self._group})

    def _clear(self, deaths: dict[str, float]) -> None:
        first_s, wait_s = min(deaths.values()), RETRY_S
        while True:
            try:
                done = self._remover.remove(deaths, "its process is dead")
            except Exception as error:  # noqa: BLE001 as above
                spent_s = time.monotonic() - first_s
                if spent_s + wait_s < self._window_s and not self._closing.wait(wait_s):
                    wait_s = min(2 * wait_s, RETRY_MAX_S)
                    continue
                why = str(error) if isinstance(error, StreamtaskError) else f"{type(error).__name__}: {error}"
                event_log.emit("member_not_removed", {"members": list(deaths), "why": why})
                return
            seconds = round(time.monotonic() - first_s, 3)
            for member, known in done.items():
                event_log.emit("member_removed", {"member": member, "known": known, "seconds": seconds})
            return
