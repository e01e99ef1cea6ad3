"""Copies of the source tree: with one patch, or with a mark in every function."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LINK = ("rec_jax", "kernels")
REACH = '''"""Writes each function that ran to the file that $REACHED names, once."""
import os

_seen: set[str] = set()


def reach(name: str) -> None:
    if name not in _seen:
        _seen.add(name)
        if "REACHED" in os.environ:
            with open(os.environ["REACHED"], "a") as file:
                file.write(name + "\\n")
'''


def tracked(root: Path) -> list[str]:
    """The files that belong to the tree: what git has or would take."""
    said = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True).stdout
    return sorted({name for name in said.split("\0")
                   if name and (root / name).is_file() and not name.startswith("rec_jax/kernels")})


def copy(root: Path, names: Iterable[str], to: Path) -> Path:
    """A copy of the tree in `to`, which must not exist."""
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, to / name)
    if (to / "kernels").is_dir() and (to / LINK[0]).is_dir():
        os.symlink("../kernels", to.joinpath(*LINK))
    return to


def patched(source: str, mutant: Mapping[str, Any]) -> str | None:
    """`source` with the mutant's lines in place of those that it was drawn from, wherever these
    are by now; None where they are no longer there."""
    starts, at = [], source.find(mutant["before"])
    while at >= 0:
        if at == 0 or source[at - 1] == "\n":
            starts.append(at)
        at = source.find(mutant["before"], at + 1)
    if not starts:
        return None
    best = min(starts, key=lambda at: abs(source.count("\n", 0, at) - mutant["starts"]))
    return source[:best] + mutant["after"] + source[best + len(mutant["before"]):]


def functions(source: str) -> list[tuple[str, int, int]]:
    """Each function that can be marked: its name, where its body begins, and its last line (from
    1). Decorators and defaults are not its own: they are of the scope around it."""
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}.{child.name}" if prefix else child.name
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = [one for one in child.body if not (
                    isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
                if body and first_line(body[0]) > child.lineno:
                    found.append((name, first_line(body[0]), child.end_lineno or child.lineno))
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])


def function_at(source: str, line: int) -> str | None:
    """The innermost function with this line in its body, if there is one."""
    around = [(end - body, name) for name, body, end in functions(source) if body <= line <= end]
    return min(around)[1] if around else None


def marked(source: str, file: str) -> str:
    """`source` where each function first says that it was entered."""
    lines = source.splitlines(keepends=True)
    marks = []
    for name, body, _ in functions(source):
        text = lines[body - 1]
        indent = text[:len(text) - len(text.lstrip())]
        marks.append((body - 1, f'{indent}__reach__("{file}:{name}")\n'))
    top = 0
    for node in ast.parse(source).body:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (future or text):
            break
        top = node.end_lineno or node.lineno
    marks.append((top, "from _reach import reach as __reach__\n"))
    for at, mark in sorted(marks, reverse=True):
        lines.insert(at, mark)
    return "".join(lines)


def mark_all(tree: Path, files: Iterable[str]) -> None:
    """Marks these files of a copy."""
    (tree / "_reach.py").write_text(REACH)
    for file in files:
        path = tree / file
        path.write_text(marked(path.read_text(), file))
