"""The built wheel carries the kernels inside the package, configs and types, without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rec_jax", "kernels", "configs")
WARNING = re.compile(r"\w*Warning: .*|.*absent from the `packages`.*")


def build(source: Path, out: Path) -> str:
    """sdist -> wheel in this environment, or pip's own way where it lacks the tools; the log."""
    command = [sys.executable, "-m", "build", *(["--no-isolation"] if has_setuptools() else []),
               "--outdir", str(out), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def has_setuptools() -> bool:
    """Whether this environment can build by itself."""
    from importlib.metadata import version

    return bool(importlib.util.find_spec("setuptools")) and int(
        version("setuptools").split(".")[0]) >= 77


EDITABLE = """
import sys
from build import ProjectBuilder
from build.env import DefaultIsolatedEnv
source, out, where = sys.argv[1:]
if where == "own":
    ProjectBuilder(source).build("editable", out)
else:
    with DefaultIsolatedEnv() as env:
        builder = ProjectBuilder.from_isolated_env(env, source)
        env.install(builder.build_system_requires)
        env.install(builder.get_requires_for_build("editable"))
        builder.build("editable", out)
"""


class Built(NamedTuple):
    source: Path
    wheel: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"  # the checkout itself stays clean
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    log = build(source, folder / "dist")
    return Built(source, next((folder / "dist").glob("*.whl")), log)


@pytest.fixture(scope="module")
def wheel(built: Built) -> Path:
    return built.wheel


@pytest.mark.slow
def test_the_wheel_has_the_kernels_inside_and_no_other_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"rec_jax"}
    for path in (ROOT / "kernels").rglob("*.py"):
        assert f"rec_jax/{path.relative_to(ROOT)}" in names
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "rec_jax").rglob("*.py")}
    assert packages <= {os.path.dirname(name) for name in names}
    assert "rec_jax/py.typed" in names
    for kind, folder in (("*.toml", "configs"), ("cpp/*", "kernels/native")):
        for path in (ROOT / folder).glob(kind):
            assert f"rec_jax/{path.relative_to(ROOT)}" in names


@pytest.mark.slow
def test_no_build_warns(built: Built, tmp_path: Path) -> None:
    assert not WARNING.search(built.log), WARNING.findall(built.log)
    # The one that says that an import hook is used; see the Makefile.
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore:::setuptools.command.editable_wheel"}
    done = subprocess.run([sys.executable, "-c", EDITABLE, str(built.source), str(tmp_path),
                           "own" if has_setuptools() else "isolated"], text=True, check=True,
                          capture_output=True, env=quiet)
    assert not WARNING.search(done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.slow
def test_a_fresh_environment_has_configs_and_no_top_level_kernels(wheel: Path,
                                                                  tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "fresh")],
                   check=True, env=environment)
    python = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          check=True, text=True, capture_output=True, env=environment)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--target", site.stdout.strip(), str(wheel)], check=True, capture_output=True)
    code = ("import importlib.util, rec_jax.shipped as shipped\n"
            "assert importlib.util.find_spec('kernels') is None\n"
            "assert importlib.util.find_spec('configs') is None\n"
            "assert importlib.util.find_spec('rec_jax.kernels') is not None\n"
            "assert 'exact' in shipped.locate('billion').read_text()\n"
            "assert shipped.locate('configs/ml100k.toml').is_file()\n"
            "print(*shipped.names())\n")
    done = subprocess.run([python, "-c", code], check=True, text=True, capture_output=True,
                          cwd=tmp_path, env=environment)
    assert done.stdout.split() == sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))


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
