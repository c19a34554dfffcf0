"""One module at a time, without a Kafka broker."""
