"""Topics in, the latest status of every task out: the fold, its stores, what is live, and one-off scans of the topics."""
