"""Scripts of the peers: each runs in its own environment, with this folder on its path."""
