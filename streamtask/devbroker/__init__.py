"""A local Apache Kafka from pip alone, for development, the demo and tests: neither Docker nor a Java of your own."""

from streamtask.devbroker.cluster import DevBroker

__all__ = ["DevBroker"]
