"""A package, so that its tests can share one namespace that is gone before other tests begin."""
