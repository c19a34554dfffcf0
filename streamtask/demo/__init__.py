"""The census: a real job over a real folder, on a real local Kafka. `streamtask demo`, or `make demo`.

census         the app: one task per file, and a few that misbehave on purpose
plan           which tasks are submitted, by which producer, with which priority
other_service  a producer that knows nothing of streamtask: confluent-kafka's bare Producer and JSON
run            starts everything, watches, and sums up
"""
