"""The benchmark: `make bench-peers && make bench`, or `python -m bench --help`.

The stores, and what this machine can do without one, take turns inside one run; only their ratios
are worth quoting. How a round goes: `rounds`; what is measured: `suite`; what measures: `worker`.
"""
