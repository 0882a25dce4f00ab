"""The management API: what owners ask of this host, and what it tells them (design §5)."""
