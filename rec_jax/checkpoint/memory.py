"""The memory of arrays that live in the host's: read and filled without a copy in between.

A NumPy view that JAX gives out is a reference, and a step that is given the array then copies it
rather than change it in place. A view by address is none; whoever takes one sees to it that the
array lives, and that nothing else touches it meanwhile.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np


def in_host_memory(shard: Any) -> bool:
    """Whether an array of one device lies in host memory, row by row."""
    return (shard.device.platform == "cpu"
            and shard.format.layout.major_to_minor == tuple(range(shard.ndim)))


def view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """`[*shape]` over memory of this process, to read and to write."""
    size = math.prod(shape) * dtype.itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memoryview(memory), np.uint8).view(dtype).reshape(shape)
