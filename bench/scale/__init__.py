"""How far one master carries: a thousand nodes, their clients and watchers, one real master."""
