"""Arrays in host memory, read and filled without a copy.

A NumPy view that JAX returns is a reference to the array, and a step to which the array is donated
then copies it and does not change it in place. A view by address is no reference. The caller makes
sure that the array lives as long as the view, and that nothing else uses its memory meanwhile.
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
