"""A local Apache Kafka from pip alone, for development, the demo and tests. It needs neither Docker nor an installed Java."""

from streamtask.devbroker.cluster import DevBroker

__all__ = ["DevBroker"]
