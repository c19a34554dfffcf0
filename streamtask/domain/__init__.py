"""The vocabulary of the contract, used by every other folder: requests, status events, identity, and the border of the
core.
"""
