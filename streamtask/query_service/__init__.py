"""The query service: HTTP, long poll, Server-Sent Events and WebSocket over the projection, and who may come in."""
