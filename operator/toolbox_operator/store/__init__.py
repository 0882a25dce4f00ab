"""The record: what the operator knows, as rows in PostgreSQL that the platform can query and join."""
