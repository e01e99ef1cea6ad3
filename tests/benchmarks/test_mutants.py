"""Mutation testing of one tiny module: what dies, what lives, what is drawn, and going on."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

TINY = '''"""A tiny module."""

from __future__ import annotations


def larger(left: int, right: int) -> bool:
    """Whether the left one is larger."""
    return left > right


def unused(left: int) -> int:
    return left + 1


def forever(count: int) -> int:
    while count > 0:
        count -= 1
    return count
'''
TEST = '''from rec_jax.tables.tiny import forever, larger


def test_larger() -> None:
    assert larger(2, 1) and not larger(1, 2)


def test_forever() -> None:
    assert forever(3) == 0
'''
EQUAL = """

def test_equal() -> None:
    assert not larger(1, 1)
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("mutants", "mutation.trees", "mutation.tests_of")
    return {name.rpartition(".")[2]: importlib.import_module(name) for name in names}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    files = {"rec_jax/__init__.py": "", "rec_jax/tables/__init__.py": "",
             "rec_jax/tables/tiny.py": TINY, "tests/tables/test_tiny.py": TEST}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


def mutant(number: int, before: str, after: str) -> dict[str, Any]:
    at = TINY[:TINY.index(before)].count("\n")
    return {"id": number, "file": "rec_jax/tables/tiny.py", "line": at + 1, "operator": "swap",
            "starts": at, "before": before, "after": after, "diff": f"-{before}+{after}"}


MUTANTS = [
    mutant(0, "    return left > right\n", "    return left < right\n"),
    mutant(1, "    return left > right\n", "    return left >= right\n"),
    mutant(2, "    return left + 1\n", "    return left - 1\n"),
    mutant(3, "    while count > 0:\n", "    while count >= 0:\n"),
]


def script(*arguments: object) -> str:
    done = subprocess.run([sys.executable, str(BENCHMARKS / "mutants.py"), *map(str, arguments)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_tells_dead_from_living_and_goes_on(
        tree: Path, tmp_path: Path, modules: dict[str, ModuleType]) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "drawn.json").write_text(json.dumps(
        {"about": {"seed": 0, "mutations": 4}, "mutants": MUTANTS}))
    # A run that was killed while it wrote.
    (state / "results.jsonl").write_text('{"id": 0, "verdict": "surv')
    script("run", "--state", state, "--root", tree, "--preload")
    found = {one["id"]: one for one in map(
        json.loads, (state / "results.jsonl").read_text().splitlines()[1:])}
    assert {number: one["verdict"] for number, one in found.items()} == {
        0: "killed", 1: "survived", 2: "survived", 3: "killed"}
    assert found[0]["by"] == "tests/tables/test_tiny.py::test_larger"
    assert found[1]["reached"] and not found[2]["reached"]
    assert script("run", "--state", state, "--root", tree, "--preload") == ""

    # A test that tells the second apart; only survivors are asked again.
    test = tree / "tests/tables/test_tiny.py"
    test.write_text(test.read_text() + EQUAL)
    script("run", "--state", state, "--root", tree, "--preload", "--again", "survived")
    out = tmp_path / "mutants.json"
    modules["mutants"].main(["summary", "--state", str(state), "--root", str(tree),
                             "--out", str(out)])
    kept = json.loads(out.read_text())
    assert (kept["drawn"], kept["run"], kept["killed"], kept["finished"]) == (4, 4, 3, True)
    assert [one["id"] for one in kept["survivors"]] == [2]
    assert kept["rooms"]["tables"]["survived"] == 1


def test_a_patch_follows_its_lines(modules: dict[str, ModuleType]) -> None:
    trees = modules["trees"]
    one = {"starts": 5, "before": "a = 1\n", "after": "a = 2\n"}
    assert trees.patched("x\na = 1\ny\n", one) == "x\na = 2\ny\n"
    assert trees.patched("a = 1\n" + "x\n" * 5 + "a = 1\n", one) == (
        "a = 1\n" + "x\n" * 5 + "a = 2\n")  # the nearer of two
    assert trees.patched("ba = 1\n", one) is None


def test_marks_stand_in_every_function(modules: dict[str, ModuleType]) -> None:
    trees = modules["trees"]
    source = ('"""Text."""\nfrom __future__ import annotations\n\n\nclass A:\n    @property\n'
              '    def one(self):\n        """Text."""\n        def two(): return 1\n\n'
              '        @str\n        def three():\n            return 2\n        return two()\n')
    marked = trees.marked(source, "a.py")
    lines = marked.splitlines()
    assert lines[2] == "from _reach import reach as __reach__"
    assert [line for line in lines if "__reach__(" in line] == [
        '        __reach__("a.py:A.one")', '            __reach__("a.py:A.one.three")']
    compile(marked, "a.py", "exec")
    assert trees.function_at(source, 13) == "A.one.three"
    for line in (9, 11, 12, 14):  # a decorator and a head are of the scope around them
        assert trees.function_at(source, line) == "A.one"
    assert trees.function_at(source, 6) is None and trees.function_at(source, 7) is None


def test_wilsons_bound_is_that_of_the_books(modules: dict[str, ModuleType]) -> None:
    wilson = modules["mutants"].wilson
    assert wilson(0, 10) == 0.0 and wilson(0, 0) == 0.0
    assert wilson(10, 10) == pytest.approx(0.7225, abs=1e-4)
    assert wilson(81, 263) == pytest.approx(0.2553, abs=1e-4)  # Newcombe (1998), table I


def test_helpers_and_packages_lead_to_a_modules_tests(tree: Path,
                                                      modules: dict[str, ModuleType]) -> None:
    files = {"rec_jax/tables/user.py": "from . import tiny\n",
             "tests/helper.py": "from rec_jax.tables import tiny\n",
             "tests/train/test_helped.py": "import helper\n",
             "tests/train/test_far.py": "import rec_jax.tables.user\n",
             "rec_jax/kinds/__init__.py": 'KINDS = {"tiny": "rec_jax.tables.tiny"}\n',
             "tests/test_all.py": "import rec_jax.tables.user\n",
             "tests/train/test_kinds.py": "from rec_jax.kinds import KINDS\n",
             "tests/tables/test_near.py": "import rec_jax.tables.user\n"}
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    assert modules["tests_of"].Imports(tree).tests_of("rec_jax/tables/tiny.py") == (
        ["tests/tables/test_tiny.py", "tests/train/test_helped.py"],
        ["tests/tables/test_near.py", "tests/test_all.py", "tests/train/test_kinds.py"])


def test_texts_for_people_are_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mutmut", minversion="3.8")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    operators = importlib.import_module("mutation.operators")
    source = ('"""Text."""\n__all__ = ["a"]\nfrom typing import TYPE_CHECKING\n'
              'if TYPE_CHECKING:\n    b = 1\ndef f(x: int = 1) -> dict[str, 2]:\n    """Text."""\n'
              '    if x < 0:\n        raise ValueError(f"{x + 1} is negative")\n'
              '    log.warning("one %s", x * 2)\n    return {"name": x[1:]}\n')
    module, found = operators.mutations(source)
    changed = {operators.render(module, one) for one in found}
    lines = {(old, new) for text in changed for old, new in
             zip(source.splitlines(), text.splitlines(), strict=True) if old != new}
    assert lines == {
        ("def f(x: int = 1) -> dict[str, 2]:", "def f(x: int = 2) -> dict[str, 2]:"),
        ("    if x < 0:", "    if x <= 0:"), ("    if x < 0:", "    if x < 1:"),
        ("    if x < 0:", "    if not (x < 0):"),
        ('        raise ValueError(f"{x + 1} is negative")', "        pass"),
        ('    log.warning("one %s", x * 2)', "    pass"),
        ('    return {"name": x[1:]}', "    return None"),
        ('    return {"name": x[1:]}', '    return {"XXnameXX": x[1:]}'),
        ('    return {"name": x[1:]}', '    return {"name": x[2:]}'),
        ('    return {"name": x[1:]}', '    return {"name": x[:]}')}
