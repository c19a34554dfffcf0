"""The words of the contract, known to every other folder: requests, status events, identity, and the border of the core."""
