"""Other stores' programming interfaces on kvstore. Each is switched on explicitly."""
