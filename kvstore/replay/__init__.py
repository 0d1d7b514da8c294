"""Replay of a request trace against a store, with every byte checked."""
