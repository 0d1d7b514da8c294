"""The fault suite: real processes, ended at every moment; `make test-fault`."""
