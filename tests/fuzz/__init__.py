"""Fuzz targets of the Python side; native/fuzz has those of the native one."""
