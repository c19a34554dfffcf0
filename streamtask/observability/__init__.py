"""What operators see: the table of every event that is logged, the Prometheus format, and OpenTelemetry spans."""
