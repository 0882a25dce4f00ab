"""The policy every gateway worker must obey, and proof that each of them does (design §6)."""
