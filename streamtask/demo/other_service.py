"""A service that knows nothing of streamtask: it produces task requests as JSON with confluent-kafka's bare Producer.

    python -m streamtask.demo.other_service BOOTSTRAP TOPIC < paths

It reads one path per line of stdin; the record key is the task_id. It shares no code with the library on purpose: this is
all that a service in any language needs to do.
"""

from __future__ import annotations

import json
import sys
import uuid

from confluent_kafka import Producer


def main(bootstrap: str, topic: str) -> None:
    # murmur2_random places keys where Java's client and every streamtask worker expect them.
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "enable.idempotence": True})
    failures = []
    for line in sys.stdin:
        task_id = str(uuid.uuid4())
        request = {"task_type": "file_census", "task_id": task_id, "parameters": {"path": line.rstrip("\n")}}
        while True:
            try:
                producer.produce(
                    topic,
                    key=task_id,
                    value=json.dumps(request),
                    on_delivery=lambda error, _message: failures.append(error) if error else None,
                )
                break
            except BufferError:  # the producer's queue is full: let it deliver
                producer.poll(0.1)
        print(task_id, flush=False)
    left = producer.flush(30)
    if left or failures:
        sys.exit(f"{left} requests were not sent, {len(failures)} refused: {failures[:1]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
