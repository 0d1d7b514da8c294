"""The commands: kvstore-master, kvstore-node and the operator's kvstore."""
