"""Real processes on a real Kafka, ended by the audit."""
