"""Runs handlers: on an event loop, in threads, and in child processes. One execution in, one Outcome out."""
