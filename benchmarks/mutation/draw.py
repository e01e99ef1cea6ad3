"""Draw single mutants at random from the mutations of some folders, as patches.

What is drawn is uniform over all mutations that change a file's syntax tree, and in the order of
the draw: the first n of it are a random sample as well, so a run that stopped has an estimate.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mutation.operators import Mutation, mutations, render

CONTEXT = 3


def draw(root: Path, folders: Iterable[str], count: int, seed: int) -> tuple[
        dict[str, Any], list[dict[str, Any]]]:
    """What there is to draw from, and `count` mutants (fewer where there are not so many)."""
    modules, population = {}, []
    for file in python_files(root, folders):
        source = (root / file).read_text()
        module, found = mutations(source)
        modules[file] = (source, module)
        population += [(file, mutation) for mutation in found]
    order = list(population)
    random.Random(seed).shuffle(order)
    drawn: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for file, mutation in order:
        if len(drawn) == count:
            break
        source, module = modules[file]
        text = render(module, mutation)
        if (file, text) not in seen and is_another(source, text):
            seen.add((file, text))
            drawn.append({"id": len(drawn), **patch(file, mutation, source, text)})
    about = {"seed": seed, "count": count, "mutations": len(population), "files": len(modules),
             "by_operator": dict(Counter(one.operator for _, one in population).most_common()),
             "mutmut": importlib.metadata.version("mutmut")}
    return about, drawn


def python_files(root: Path, folders: Iterable[str]) -> list[str]:
    found = {path.relative_to(root).as_posix()
             for folder in folders for path in (root / folder).rglob("*.py")}
    return sorted(file for file in found if "/mosaic_" not in file)


def is_another(source: str, text: str) -> bool:
    """Whether `text` is a program, and not the one that `source` is."""
    try:
        return ast.dump(ast.parse(text)) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def patch(file: str, mutation: Mutation, source: str, text: str) -> dict[str, Any]:
    """The lines that change and those around them, before and after."""
    old, new = source.splitlines(keepends=True), text.splitlines(keepends=True)
    changes = [one for one in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
               if one[0] != "equal"]
    first, last = changes[0][1], changes[-1][2]
    first_new, last_new = changes[0][3], changes[-1][4]
    above = min(CONTEXT, first)
    below = min(CONTEXT, len(old) - last)
    diff = difflib.unified_diff(old, new, file, file, n=1)
    return {"file": file, "line": first + 1, "operator": mutation.operator, "starts": first - above,
            "before": "".join(old[first - above:last + below]),
            "after": "".join(new[first_new - above:last_new + below]),
            "diff": "".join(list(diff)[2:])}
