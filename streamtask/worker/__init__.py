"""A worker: the process that owns shards and runs their tasks, and the supervisor that starts several of them."""
