"""What GPUs run for kvstore, and arrays of CuPy; CuPy is imported when it is needed."""

from kvstore.gpu.arrays import get_array

__all__ = ["get_array"]
