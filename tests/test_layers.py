"""Imports point down the layers, and the check that says so bites."""

from __future__ import annotations

import functools
import json
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


def test_every_package_goes_into_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {".".join(path.parent.relative_to(ROOT).parts)
             for path in (ROOT / "rec_jax").glob("**/*.py")}
    there |= {"rec_jax." + ".".join(path.parent.relative_to(ROOT).parts)
              for path in (ROOT / "kernels").glob("**/*.py")}
    assert set(settings["packages"]) == there | {"rec_jax.configs"}


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


GROUND = {"config", "dtypes", "metrics", "progress", "streams", "locks", "devices", "files",
          "jsons", "ranges", "shipped", "processes", "tasks", "errors", "compat", "allocator",
          "mesh", "sizes"}
FACE = {"__main__", "cli", "lookup", "api"}
RUN = {"run", "run_sections"}


def room_of(module: str) -> str:
    """The folder of a module; the small files of the ground, of the face, and of a run, are one
    each."""
    name = module.split(".")[1] if "." in module else module
    return ("ground" if name in GROUND else "face" if name in FACE else
            "run" if name in RUN else name)


def test_from_the_face_to_the_ground_there_are_at_most_eight_steps() -> None:
    """And as few arrows between the rooms: a newcomer can hold the house in mind."""
    code = ("import json, grimp\n"
            "graph = grimp.build_graph('rec_jax', cache_dir=None)\n"
            "print(json.dumps([[m, n] for m in graph.modules "
            "for n in graph.find_modules_directly_imported_by(m)]))\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True,
                          check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    arrows = {(room_of(a), room_of(b)) for a, b in json.loads(done.stdout)
              if "rec_jax" not in (a, b)}
    arrows = {(a, b) for a, b in arrows if a != b}

    @functools.cache
    def steps(room: str) -> int:
        return max((1 + steps(below) for above, below in arrows if above == room), default=0)

    rooms = {room for arrow in arrows for room in arrow}
    assert max(map(steps, rooms)) <= 8, sorted((steps(room), room) for room in rooms)
    assert len(rooms) <= 19 and len(arrows) <= 87, (len(rooms), len(arrows), sorted(arrows))


def test_no_file_is_longer_than_a_person_can_hold() -> None:
    files = {path.resolve() for folder in (ROOT / "rec_jax", ROOT / "kernels")
             for path in folder.rglob("*") if path.suffix in (".py", ".cc", ".h")}
    lengths = sorted((len(path.read_text().splitlines()), path.name) for path in files)
    assert lengths[-1][0] <= 400, lengths[-3:]
    assert lengths[len(lengths) // 2][0] <= 150
