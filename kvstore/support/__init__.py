"""Support bundles: what an operator sends when something is wrong, without secrets and objects."""
