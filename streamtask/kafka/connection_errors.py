"""Explains why a client cannot reach its brokers, for the person who has to fix it.

librdkafka raises nothing when a password is wrong or a certificate does not match: it keeps trying, and the waiting call only
reports a timeout. Only the client's error callback learns the reason. `Heard` is that callback: it keeps the reason for the
call that times out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, TopicDescription, TopicMetadata

from streamtask.config import PREFIX_DEFAULT, prefix_of
from streamtask.errors import ClusterError, ConfigError, NotAllowed, StreamtaskError, TopicsMissing, Unreachable

ASK_S = 5.0
TOLD_EVERY_S = 60.0  # librdkafka reports each of its attempts, several per second

# (part of a message of librdkafka or OpenSSL, advice); the first match counts. `sasl.…` and `ssl.…` are raw settings.
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        "certificate required",
        "The broker requires a client certificate from an authority that it trusts: set ssl.certificate.location and "
        "ssl.key.location.",
    ),
    (
        "certificate verify failed",
        "The broker's certificate is not signed by the authority in ssl.ca.location, or was issued for another host.",
    ),
    ("alert", "The broker rejected the client certificate: check ssl.certificate.location and ssl.key.location."),
    ("OAUTHBEARER token", "No token: check sasl.oauthbearer.* or the function in oauth_cb."),
    (
        "SASL authentication error",
        "The broker rejected the credentials: check sasl.mechanism and its name and key.",
    ),
    ("SASL", "Check sasl.mechanism and security.protocol: the broker may offer others at this port."),
    ("SSL", "TLS failed: check security.protocol and ssl.*, and that this port uses TLS."),
    (
        "brokers are down",
        "Check the address and security.protocol: a TLS port closes connections that do not use TLS.",
    ),
)
_LOOK = "List the missing ACLs: streamtask doctor --role producer (or another role)"
# Errors caused by a missing ACL.
DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
_REFUSED = (KafkaError._AUTHENTICATION, KafkaError._SSL)


def advice(text: str) -> str:
    """Advice for a client that received this message; "" if there is none."""
    return next((advised for part, advised in _ADVICE if part in text), "")


class Heard:
    """An `error_cb` that remembers the reason.

    also  another callback, which receives every error too
    tell  receives each kind of error as a sentence, at most once a minute
    """

    def __init__(
        self, also: Callable[[KafkaError], None] | None = None, *, tell: Callable[[str], None] | None = None
    ) -> None:
        self._also, self._tell = also, tell
        self._text = ""
        self._refused = False  # the kept text says who refused us, not only that no broker answers
        self._reported_s: dict[int, float] = {}  # error code → when, monotonic

    def __call__(self, error: KafkaError) -> None:
        if self._also is not None:
            self._also(error)
        code, text = error.code(), error.str()
        refused = code in _REFUSED or (code != KafkaError._ALL_BROKERS_DOWN and bool(advice(text)))
        # "1/1 brokers are down" follows every refusal and says less.
        if refused or not self._refused:
            self._text, self._refused = text, refused
        now_s = time.monotonic()
        if self._tell is not None and now_s - self._reported_s.get(code, -TOLD_EVERY_S) >= TOLD_EVERY_S:
            self._reported_s[code] = now_s
            self._tell(_sentence(f"{error.name()}: {text}"))

    def why(self) -> str:
        """` (reason). Advice.`, to be appended to a sentence; "" if no error was reported."""
        return f" ({_sentence(self._text)})" if self._text else ""


def failed(what: str, error: KafkaException | KafkaError, heard: Heard | None = None) -> ClusterError:
    """The error for a query without an answer. what: `no broker of 127.0.0.1:9092 answered`."""
    held = error if isinstance(error, KafkaError) else error.args[0]
    text = f"{what[0].upper()}{what[1:]}: {held.str()} ({held.name()})"
    if held.code() in DENIED:
        return NotAllowed(f"{text}. {_LOOK}")
    return Unreachable(text + ("" if heard is None else heard.why()))


def create_command(prefix: str) -> str:
    """The command that creates the topics of a prefix."""
    return "streamtask topics create" + (f" --prefix {prefix}" if prefix != PREFIX_DEFAULT else "")


def refuse_absent(known: Mapping[str, TopicMetadata], wanted: Iterable[str], admin: AdminClient | None = None) -> None:
    """Raises NotAllowed for topics that may not be seen, TopicsMissing for those that do not exist.

    admin  required if all topics were listed: a list leaves out hidden topics, only a query by name distinguishes them
    """
    hidden: list[str] = []
    missing = []
    for topic in wanted:
        error = known[topic].error if topic in known else None
        if error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            hidden.append(topic)
        elif topic not in known or error is not None:
            missing.append(topic)
    if missing and admin is not None:
        futures = admin.describe_topics(TopicCollection(missing), request_timeout=ASK_S)
        hidden += [topic for topic, future in futures.items() if _denied(future)]
    if hidden:
        raise hidden_topics(hidden)
    if missing:
        raise missing_topics(missing)


def _denied(future: Future[TopicDescription]) -> bool:
    try:
        future.result(2 * ASK_S)
    except KafkaException as error:
        return error.args[0].code() in DENIED
    except FutureTimeout:
        pass
    return False


def missing_topics(topics: Sequence[str]) -> TopicsMissing:
    """topics: at least one, all of one prefix"""
    return TopicsMissing(
        f"Topics do not exist: {', '.join(topics)}. Create them: {create_command(prefix_of(topics[0]))}"
    )


def hidden_topics(topics: Iterable[str]) -> NotAllowed:
    return NotAllowed(f"Kafka does not let this client see {', '.join(topics)}. {_LOOK}")


def hopeless(text: str, group: str, session_timeout_ms: int, *, joined: bool) -> StreamtaskError | None:
    """Why a worker that receives this error can never work, or None. librdkafka would retry it for ever.

    joined  it has been a member, so its permissions may come back: it waits instead of giving up
    """
    if text.startswith("INVALID_SESSION_TIMEOUT"):
        bounds = "group.min.session.timeout.ms and group.max.session.timeout.ms"
        return ConfigError(
            f"session_timeout_ms={session_timeout_ms} is outside the broker's {bounds}: every join is refused. Change it."
        )
    if text.startswith("GROUP_AUTHORIZATION_FAILED") and not joined:
        return NotAllowed(
            f"Kafka does not let this client join group {group}: a worker needs READ on it. "
            "List the missing ACLs: streamtask doctor --role worker"
        )
    return None


def _sentence(text: str) -> str:
    advised = advice(text)
    return f"{text}. {advised}" if advised else text
