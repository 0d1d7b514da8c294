"""Topology of a host: RDMA NICs, GPUs, NUMA nodes and how far they are from each other.

Everything is read from sysfs and procfs, whose places are parameters. Nothing that is there is
believed: files are bounded, and what cannot be parsed is unknown. Import what you need from its
modules: clients load `numa` alone.
"""
