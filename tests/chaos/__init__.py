"""Chaos: real workers on a real Kafka under faults drawn from one seed. `python -m tests.chaos`; docs/chaos.md."""
