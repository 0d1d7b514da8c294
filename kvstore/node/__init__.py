"""The node: registration, heartbeats and metrics around the native block store."""
