"""Compiles Hopper kernels to machine code without a GPU: run by `test_mosaic_gpu_sm90.py`.

    python sm90_compile.py PACKAGES forward:64:bias:softcap:expected grad:128:-:-:- ...

PACKAGES holds JAX's CUDA plugin and NVIDIA's assembler. A kernel is lowered as for a GPU, and
handed to the plugin's own compiler. What the assembler says follows a line with the kernel's name.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.experimental.mosaic.gpu.core as core
import jax.numpy as jnp

from rec_jax.kernels.mosaic_gpu.forward import forward
from rec_jax.kernels.mosaic_gpu.grad import item_grad
from rec_jax.kernels.primitives import Scores

PACKAGES = Path(sys.argv[1])
N, V, PADS = 8192, 1_000_000, 3


def lowered(kind: str, dim: int, bias: bool, softcap: bool, expected: bool) -> bytes:
    """The kernel as Mosaic GPU's module."""

    def run(h: Any, w: Any, y: Any, scale: Any, b: Any, *known: Any) -> Any:
        rule = Scores(scale, b if bias else None, V - PADS, 0, 9.0 if softcap else None)
        if kind == "forward":
            return forward(h, w, y, rule, with_expected=expected)
        return item_grad(h, w, y, *known, rule)

    def shape(*sides: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype)

    core.KNOWN_KERNELS.clear()
    jax.jit(run).trace(
        shape(N, dim, dtype=jnp.bfloat16), shape(V, dim, dtype=jnp.bfloat16),
        shape(N, dtype=jnp.int32), shape(), shape(V),
        *[shape(N)] * 3 * (kind == "grad")).lower(lowering_platforms=("cuda",))
    (module,) = core.KNOWN_KERNELS.values()
    return module


def main() -> int:
    cuda = next(PACKAGES.glob("nvidia/cu*"))
    # The import of Mosaic GPU has set another root.
    os.environ["MOSAIC_GPU_CUDA_ROOT"] = str(cuda)
    os.environ["PATH"] = f"{cuda / 'bin'}{os.pathsep}{os.environ['PATH']}"
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = os.environ["MOSAIC_GPU_DUMP_SASS"] = "1"
    runtime = next(PACKAGES.glob("jax_cuda*_plugin/libmosaic_gpu_runtime.so"))
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    plugin = ctypes.CDLL(str(next(PACKAGES.glob("jax_plugins/xla_cuda*/xla_cuda_plugin.so"))))
    plugin.MosaicGpuCompile.argtypes = [ctypes.c_char_p, ctypes.c_int]
    plugin.MosaicGpuCompile.restype = ctypes.c_void_p
    for name in sys.argv[2:]:
        kind, dim, *options = name.split(":")
        module = lowered(kind, int(dim), *(option != "-" for option in options))
        print(f"== {name}", flush=True)
        if not plugin.MosaicGpuCompile(module, len(module)):
            print("it does not compile", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
