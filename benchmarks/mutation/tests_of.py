"""Which test files are a module's tests.

A module's tests are the files that import it, themselves or through a helper of the tests; those
that reach it over other modules and lie in its mirror folder (`tests/tables` for
`rec_jax/tables`) or in `tests/` itself, where the tests of the whole package are; and those that
import a package which names it in a dict of kinds. The first come first, and the fastest first
among them. Of these, a mutant in a function is shown the ones that enter that function in an
unmutated run, as no other could tell it apart, and those that enter none and so read the sources.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "rec_jax"


def module_of(file: str) -> str:
    """The name that a source file is imported by."""
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"{PACKAGE}.{name}" if name.split(".")[0] == "kernels" else name


def room_of(file: str) -> str:
    """The folder of a source file, below the package: `tables`, `kernels`."""
    return next(part for part in Path(file).parts if part != PACKAGE)


class Imports:
    """Who imports whom in a tree of sources and tests."""

    def __init__(self, root: Path) -> None:
        sources = [*(root / PACKAGE).rglob("*.py"), *(root / "kernels").rglob("*.py")]
        named = {module_of(path.relative_to(root).as_posix()): path for path in sources
                 if not path.relative_to(root).as_posix().startswith(f"{PACKAGE}/kernels/")}
        helpers = {path.stem: path for path in (root / "tests").rglob("*.py")
                   if not path.stem.startswith("test_") and path.stem != "conftest"}
        self.tests = sorted(path.relative_to(root).as_posix()
                            for path in (root / "tests").rglob("test_*.py"))
        self._root, self._modules, self._helpers = root, set(named), helpers
        self._of_module = {name: self._named(path, name if path.stem == "__init__" else
                                             name.rpartition(".")[0])
                           for name, path in named.items()}
        self._direct = {test: self._by_test(root / test) for test in self.tests}
        self._kinds = {name: self._modules & _texts(path) for name, path in named.items()
                       if path.stem == "__init__"}

    def tests_of(self, file: str) -> tuple[list[str], list[str]]:
        """The test files that import this source file, and the rest of its tests."""
        module, room = module_of(file), room_of(file)
        usable = [test for test in self.tests if "mosaic" not in test and "aot" not in test]
        direct = [test for test in usable if module in self._direct[test]]
        packages = {name for name, kinds in self._kinds.items() if module in kinds}
        near = [test for test in usable if test not in direct and (
            packages & self._direct[test] or (
                (test.startswith(f"tests/{room}/") or test.count("/") == 1)
                and module in self._all(self._direct[test])))]
        return direct, near

    def _by_test(self, path: Path) -> set[str]:
        """What a test file imports, with the helpers and conftest files that serve it."""
        found: set[str] = set()
        open_, done = [path, path.parent / "conftest.py"], set()
        while open_:
            one = open_.pop()
            if one in done or not one.is_file():
                continue
            done.add(one)
            found |= self._named(one)
            open_ += [self._helpers[name] for name in _imported(one) if name in self._helpers]
        return found

    def _named(self, path: Path, package: str = "") -> set[str]:
        """The modules of the package that a file names in its imports."""
        return {name for name in _imported(path, package) if name in self._modules}

    def _all(self, names: Iterable[str]) -> set[str]:
        """These modules and all that they import."""
        found: set[str] = set()
        open_ = list(names)
        while open_:
            one = open_.pop()
            if one not in found:
                found.add(one)
                open_ += self._of_module.get(one, ())
        return found


def _imported(path: Path, package: str = "") -> set[str]:
    """Every name that could be a module: `a.b`, and `a.b.c` for `from a.b import c`.

    package: the one that the file is in, which relative imports begin at.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def _texts(path: Path) -> set[str]:
    """All strings of a file."""
    return {node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)}
