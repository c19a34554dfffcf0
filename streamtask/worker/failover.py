"""Fast failover: removes the member of a dead worker process from the group, so that its shards move now.

Without it they move when the session timeout expires. That stays the guarantee; this is best effort. confluent-kafka has no
such call, so a second client makes it: kafka-python, extra `[failover]`. Always true: only members that a dead process left
(or an operator named) are removed; nothing waits for it; if it cannot work, it says so once, at the start, with the reason.

Each security setting is either mapped to kafka-python's own or reported as unmapped, and then failover is off: to connect with
less security than configured would be worse than a wait.
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

INSTALL = "pip install 'streamtask-kafka[failover]'"
CALL_S = 3.0  # limit of one connect, and of one request
RETRY_S, RETRY_MAX_S = 0.2, 2.0
KEEP_S = 45.0  # between two checks of the connection: brokers and NATs drop one that is idle for minutes
DEATHS_MAX = 1_000  # deaths in the queue; far above any number of processes

# librdkafka's name → kafka-python's, for settings with the same meaning.
SAME: Mapping[str, str] = {
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
# Not GSSAPI: kinit gets its tickets inside the other client.
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
# These belong to Kerberos and OAuth, which are refused as mechanisms; with any other mechanism they mean nothing.
IDLE_PARTS = ("sasl.kerberos.", "sasl.oauthbearer.", "enable.sasl.oauthbearer.")


def mapped(properties: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate librdkafka's properties to kafka-python's configuration.

    Returns (configuration, what cannot be mapped: names, with the value unless it is secret). It looks only at properties
    that decide how to reach the brokers, and only at those that the security protocol uses.
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
        # Tokens that librdkafka fetches itself stay inside it; the user's own function serves both clients.
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
    """A token provider for kafka-python, which connects rarely, so it gets a fresh token each time."""
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class Tokens(AbstractTokenProvider):  # type: ignore[misc]
        def token(self) -> str:
            return str(callback(given)[0])

        def extensions(self) -> dict[str, str]:
            reported = callback(given)
            return dict(reported[3]) if len(reported) > 3 and reported[3] else {}

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
    """kafka-python's configuration for these brokers. Raises ConfigError if a setting cannot be mapped, or the extra is not
    installed.
    """
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
    """Returns (admin client, function that closes it). Raises kafka-python's errors within about CALL_S."""
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
        for one in made:  # its I/O thread is already running, and nothing else can reach it
            one.close()
        raise
    return client, client.close


def remove_members(settings: KafkaSettings, group: str, members: Sequence[str], *, reason: str) -> dict[str, bool]:
    """Remove members from the group in one request. Returns {member id: True, or False if the group did not know it}.

    Raises ConfigError (not installed, or a setting without a counterpart), Unreachable, or ClusterError.
    """
    remover = _Remover(configuration(settings), group)
    try:
        return remover.remove(members, reason)
    finally:
        remover.close()


class _Remover:
    """Removes members of one group through a client that stays connected, because connecting takes longer than removing.
    Used by one thread.
    """

    def __init__(self, config: Mapping[str, Any], group: str) -> None:
        self._config, self._group = config, group
        self._client: Any = None
        self._close: Callable[[], None] = lambda: None

    def connect(self) -> None:
        """Connect to the group's coordinator, or check that the connection works. Raises kafka-python's errors."""
        if self._client is None:
            self._client, self._close = _connected(self._config)
        try:
            self._client.describe_groups([self._group])
        except BaseException:
            self.close()
            raise

    def remove(self, members: Collection[str], reason: str) -> dict[str, bool]:
        """The same as remove_members."""
        from kafka.admin import MemberToRemove
        from kafka.errors import KafkaError

        wanted = [MemberToRemove(member_id=member, reason=reason) for member in members]
        kept = self._client is not None
        try:
            if self._client is None:
                self._client, self._close = _connected(self._config)
            answers = self._client.remove_group_members(self._group, wanted)
        except (KafkaError, OSError) as error:  # a failed connect or an unreadable TLS file is an OSError
            self.close()
            if kept:  # its connection may have died unnoticed
                return self.remove(members, reason)
            kind = Unreachable if isinstance(error, OSError) or getattr(error, "retriable", False) else ClusterError
            raise kind(f"{','.join(self._config['bootstrap_servers'])}: {type(error).__name__}: {error}") from error
        names = {member: getattr(answer, "__name__", str(answer)) for member, answer in answers.items()}
        refused = {member: name for member, name in names.items() if name not in ("NoError", "UnknownMemberIdError")}
        if refused:
            reported = ", ".join(f"{m}: {name}" for m, name in refused.items())
            raise ClusterError(f"group {self._group} did not remove {reported}")
        return {member: name == "NoError" for member, name in names.items()}

    def close(self) -> None:
        close, self._client, self._close = self._close, None, lambda: None
        close()


class Failover:
    """Removes the members of dead processes, in its own thread.

    window_s  how long after a death a removal is useful: the session timeout, after which the broker does it itself

    It is off, with one log line that says why, if the extra is missing or a setting has no counterpart. Its own thread finds
    that out: importing the second client takes 0.1 s, and the children would start that much later.
    """

    def __init__(self, settings: KafkaSettings, group: str, *, window_s: float) -> None:
        self._settings, self._group, self._window_s = settings, group, window_s
        self._deaths: queue.Queue[tuple[str, float] | None] = queue.Queue(DEATHS_MAX)
        self._off = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failover", daemon=True)
        self._thread.start()

    def died(self, member: str) -> None:
        """Report that the process with this member id is dead. Returns at once."""
        if self._off:
            return
        try:
            self._deaths.put_nowait((member, time.monotonic()))
        except queue.Full:
            event_log.emit("member_not_removed", {"members": [member], "why": f"{DEATHS_MAX} others wait"})

    def close(self, timeout_s: float) -> None:
        """Give the waiting removals one try within this time."""
        self._closing.set()
        try:
            self._deaths.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._remover = _Remover(configuration(self._settings), self._group)
        except ConfigError as error:
            self._off = True
            # Not having asked for it is normal; settings that rule it out deserve attention.
            name = "failover_off" if INSTALL in str(error) else "failover_unmapped"
            event_log.emit(name, {"why": str(error), "session_timeout_s": self._window_s})
            return
        self._prove()
        try:
            while (death := self._next()) is not None:
                deaths = dict([death])
                while not self._deaths.empty():  # the only reader: many deaths make one request
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
        """The next death; keeps the connection alive until it comes. None: there are no more."""
        while True:
            try:
                return self._deaths.get(timeout=KEEP_S)
            except queue.Empty:
                with contextlib.suppress(Exception):  # tried again later, and at a death
                    self._remover.connect()

    def _prove(self) -> None:
        """Connect, so that wrong settings show before a process dies."""
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
