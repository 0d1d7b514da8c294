"""The fault suite: real processes, killed at every moment; `make test-fault`."""
