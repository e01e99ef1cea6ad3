"""The built wheel carries the kernels inside the package, and types."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rec_jax", "kernels")


def build(source: Path, out: Path) -> None:
    """sdist -> wheel in this environment, or pip's own way where it lacks the tools."""
    if importlib.util.find_spec("setuptools") and importlib.util.find_spec("build"):
        from importlib.metadata import version

        if int(version("setuptools").split(".")[0]) >= 77:
            subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out),
                            str(source)], check=True, capture_output=True)
            return
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(source)], check=True,
                   capture_output=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"  # the checkout itself stays clean
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    build(source, folder / "dist")
    return next((folder / "dist").glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_the_kernels_inside_and_no_other_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"rec_jax"}
    for path in (ROOT / "kernels").glob("*.py"):
        assert f"rec_jax/kernels/{path.name}" in names
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "rec_jax").rglob("*.py")}
    assert packages <= {os.path.dirname(name) for name in names}
    assert "rec_jax/py.typed" in names


@pytest.mark.slow
def test_the_installed_wheel_imports_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--target", str(target), str(wheel)], check=True, capture_output=True)
    code = ("import rec_jax, rec_jax.kernels as kernels, jax.numpy as jnp\n"
            f"assert rec_jax.__file__.startswith({str(target)!r}), rec_jax.__file__\n"
            f"assert kernels.__file__.startswith({str(target)!r}), kernels.__file__\n"
            "loss, _ = kernels.softmax_loss(jnp.ones((2, 4)), jnp.ones((8, 4)),\n"
            "                               jnp.zeros(2, jnp.int32))\n"
            "assert abs(float(loss[0]) - 2.0794) < 1e-3\n")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=elsewhere,
                   env={**os.environ, "PYTHONPATH": str(target)})
