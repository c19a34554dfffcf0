"""Figures of streamtask on a real local Kafka: `python -m benchmarks throughput|latency|rooms [--json]`.

Each benchmark starts its own broker, says machine, versions and commit, and checks what it measured: a rate over tasks
whose histories are not complete is no rate.
"""
