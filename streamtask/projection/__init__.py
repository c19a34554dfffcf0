"""From topics to the latest status of every task: the fold, its stores, the live feed, and one-off scans of the topics."""
