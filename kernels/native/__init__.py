"""The `native` backend: C++ for CPUs, called through XLA's foreign functions."""
