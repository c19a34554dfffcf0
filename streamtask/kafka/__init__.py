"""Everything that talks to a broker: clients, transactions, claims, topics, permissions."""
