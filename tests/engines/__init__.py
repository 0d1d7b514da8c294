"""kvstore inside real engines, in environments of their own: make test-engines."""
