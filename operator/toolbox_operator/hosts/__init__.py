"""Toolbox hosts as the operator sees them: one client, one watch and one snapshot each."""
