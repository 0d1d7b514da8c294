"""Bridges into inference engines. Each module imports its engine only where it is used."""
