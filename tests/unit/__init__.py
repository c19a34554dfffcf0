"""One room at a time, without Kafka."""
