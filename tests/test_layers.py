"""Imports point down the layers, and the check that says so bites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of `root`'s pyproject on `root`'s own copy of the package."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=root, text=True,
                          capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"})


def copy_of_package(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rec_jax", folder / "rec_jax", ignore=ignored)  # follows the link
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_data_flows_one_way() -> None:
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Contracts: 2 kept, 0 broken" in " ".join(found.stdout.split())


def test_every_module_has_its_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(one for one in contracts["contracts"] if one["type"] == "layers")["layers"]
    named = [name.strip() for layer in layers for name in layer.replace(":", "|").split("|")]
    modules = {path.stem for path in (ROOT / "rec_jax").iterdir()
               if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}
    assert len(named) == len(set(named)) and set(named) == modules


def test_a_lower_layer_that_imports_a_higher_one_is_caught(tmp_path: Path) -> None:
    root = copy_of_package(tmp_path)
    module = root / "rec_jax" / "data" / "arrays.py"
    module.write_text(module.read_text() + "\nfrom rec_jax.inference import evaluate  # noqa\n")
    found = lint(root)
    assert found.returncode == 1
    assert "rec_jax.data is not allowed to import rec_jax.inference" in found.stdout


def test_a_kernel_that_knows_more_than_arrays_is_caught(tmp_path: Path) -> None:
    root = copy_of_package(tmp_path)
    module = root / "rec_jax" / "kernels" / "rank.py"
    module.write_text(module.read_text() + "\nfrom rec_jax.errors import InputError  # noqa\n")
    found = lint(root)
    assert found.returncode == 1
    assert "rec_jax.kernels is not allowed to import rec_jax.errors" in found.stdout


def test_importing_the_package_or_the_kernels_does_no_more_than_that() -> None:
    code = ("import sys, rec_jax\n"
            "assert 'jax' not in sys.modules and 'polars' not in sys.modules\n"
            "import rec_jax.kernels\n"
            "known = [name for name in sys.modules if name.startswith('rec_jax.')]\n"
            "assert all(name.startswith('rec_jax.kernels') for name in known), known\n"
            "from jax._src import xla_bridge\n"
            "assert not xla_bridge._backends, 'devices were opened by an import'\n")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
