"""The query service: HTTP, long poll, Server-Sent Events and WebSocket over the projection, and access control."""
