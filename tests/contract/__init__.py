"""One suite per port, over every implementation; the broker's own rules on a real Kafka."""
