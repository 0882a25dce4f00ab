"""Converges Docker to the desired instances: containers, networks, firewall (design §5)."""
