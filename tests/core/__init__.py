"""The core, exhaustively and without I/O."""
