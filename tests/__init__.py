"""The specification: read top to bottom, the tests tell the guarantees."""
