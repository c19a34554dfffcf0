"""What an administrator does and confluent-kafka cannot: client quotas, and replicas placed by hand. By kafka-python.

Imported where it is used: kafka-python warns of a deprecation when it is imported, and warnings are errors here.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ANSWER_S = 20.0
MOVE_S = 60.0


@contextlib.contextmanager
def _asking(bootstrap: str) -> Iterator[Any]:
    """Its errors become TimeoutError: nobody who asks should have to know them, and all of them mean that nobody answered."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        milliseconds = int(ANSWER_S * 1_000)
        try:
            client = KafkaAdminClient(
                bootstrap_servers=bootstrap.split(","),
                request_timeout_ms=milliseconds,
                bootstrap_timeout_ms=milliseconds,
                client_id="administrator",
            )
            try:
                yield client
            finally:
                client.close()
        except KafkaError as error:
            raise TimeoutError(f"{type(error).__name__}: {error}") from None


def limit_producers(bootstrap: str, bytes_per_s: int | None, *, client_id: str | None = None) -> None:
    """What each producer may send to each broker; None lifts the limit.

    client_id  whose; None: of all that have no limit of their own

    Raises RuntimeError when the broker refuses, TimeoutError when none answers.
    """
    with _asking(bootstrap) as client:
        from kafka.protocol.admin import AlterClientQuotasRequest

        entry = AlterClientQuotasRequest.EntryData
        request = AlterClientQuotasRequest(
            entries=[
                entry(
                    entity=[entry.EntityData(entity_type="client-id", entity_name=client_id)],
                    ops=[
                        entry.OpData(
                            key="producer_byte_rate", value=float(bytes_per_s or 0), remove=bytes_per_s is None
                        )
                    ],
                )
            ],
            validate_only=False,
        )
        _ask(client, request, lambda answer: [(one.error_code, one.error_message) for one in answer.entries])


def _ask(client: Any, request: Any, errors: Callable[[Any], list[tuple[int, str | None]]]) -> None:
    async def ask() -> Any:
        return await client._manager.send(request)

    refused = [error for error in errors(client._manager.run(ask)) if error[0]]
    if refused:
        raise RuntimeError(f"refused: {refused}")


def place_replicas(bootstrap: str, placed: Mapping[tuple[str, int], Sequence[int]]) -> None:
    """{(topic, partition): brokers}; returns when they lie there. Raises RuntimeError when that is refused, TimeoutError
    when none answers, or they are not there in time."""
    with _asking(bootstrap) as client:
        from kafka import TopicPartition

        wanted = {TopicPartition(*place): list(brokers) for place, brokers in placed.items()}
        refused = {place: error for place, error in client.alter_partition_reassignments(wanted).items() if error}
        if refused:
            raise RuntimeError(f"refused: {refused}")
        deadline = time.monotonic() + MOVE_S
        while client.list_partition_reassignments():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the replicas did not move within {MOVE_S:g} s")
            time.sleep(0.2)
