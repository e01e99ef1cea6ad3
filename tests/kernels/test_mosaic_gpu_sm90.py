"""Every variant of the Hopper kernels compiles to sm_90a machine code, on a machine without a GPU.

The compilers are wheels that only this needs: `make gpu-aot` puts them into `.gpu-aot`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parents[1] / ".gpu-aot"
VARIANTS = [f"{kind}:{dim}:{bias}:{softcap}:{expected}"
            for kind in ("forward", "grad") for dim in (32, 64, 96, 128, 192, 256)
            for bias, softcap in (("-", "-"), ("bias", "softcap"))
            for expected in (("expected", "-") if kind == "forward" else ("-",))]
SPILLED_BYTES = 128
"""At d = 256, whose sums alone fill the registers; no other width spills."""


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the assembler says of each variant."""
    found = [path.name for path in PACKAGES.glob("jax_cuda*_plugin-*.dist-info")]
    if not any(name.endswith(f"-{jax.__version__}.dist-info") for name in found):
        pytest.skip(f"JAX's CUDA plugin {jax.__version__} is not in {PACKAGES.name} "
                    "(make gpu-aot)")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of libcuda")
    stub = tmp_path_factory.mktemp("stub")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(stub / "libcuda.so.1"),
                    str(HERE / "sm90_driver.c")], check=True)
    done = subprocess.run(
        [sys.executable, str(HERE / "sm90_compile.py"), str(PACKAGES), *VARIANTS], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=840, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "LD_LIBRARY_PATH": str(stub)})
    assert done.returncode == 0, done.stdout[-2000:]
    parts = re.split(r"^== (.*)$", done.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_becomes_machine_code_with_tensor_core_products(
        assembled: dict[str, str], variant: str) -> None:
    said = assembled[variant]
    assert "for 'sm_90a'" in said and "it does not compile" not in said, said[-500:]
    assert "HGMMA" in said, "no product runs on the tensor cores"
    assert "serialized" not in said, "products wait for each other"
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert spilled is not None
    assert int(spilled[1]) <= (SPILLED_BYTES if ":256:" in variant else 0)
