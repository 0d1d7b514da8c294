"""The client: connecting to a cluster, and the Store that everything else is called on."""
