"""What GPUs run for kvstore, and arrays of CuPy; nothing here is imported before it is needed."""
