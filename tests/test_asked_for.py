"""What overrides a check, or runs code of others, is only done where somebody asked for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "rec_jax"
DANGEROUS = {"force", "trust_code", "overwrite"}


def defaults() -> Iterator[tuple[str, str, ast.expr]]:
    """Where, name and default of every parameter and field of the package that has a default."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.arguments):
                listed = [*node.posonlyargs, *node.args]
                pairs = [*zip(reversed(listed), reversed(node.defaults), strict=False),
                         *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
                yield from ((f"{path.relative_to(PACKAGE)}:{argument.lineno}", argument.arg, value)
                            for argument, value in pairs if value is not None)
            elif (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                    and node.value is not None):
                yield where, node.target.id, node.value


def test_nothing_is_forced_trusted_or_overwritten_by_default() -> None:
    found = [(where, name, value) for where, name, value in defaults() if name in DANGEROUS]
    assert {name for _, name, _ in found} >= {"force", "trust_code", "overwrite"}
    wrong = [f"{where}: {name} = {ast.unparse(value)}" for where, name, value in found
             if not (isinstance(value, ast.Constant) and value.value in (False, None))]
    assert not wrong
