"""What operators see: the table of all logged events, the Prometheus format, and OpenTelemetry spans."""
