"""The vocabulary of the contract, shared by every folder: requests, status events, identity, the border of the core."""
