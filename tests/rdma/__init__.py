"""RDMA over Ethernet, in a virtual machine whose kernel has it: make test-rdma."""
