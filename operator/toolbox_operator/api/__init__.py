"""Resource models, conditions and rules of `magictoolbox.dev/v1alpha1`: the source of `crds/`."""
