"""The mutations of one file, by the operators of mutmut 3 and a few of the same form.

mutmut runs its mutants as copies of a function behind a switch, and so leaves out every function
with a decorator, which here are the jitted ones. Its operators are plain functions from a node of
libcst to its mutated nodes, so they are taken alone. cosmic-ray was the other choice: it turns each
binary operator into all twelve others, which would be most of what is drawn, and it deletes neither
statements nor arguments.

Two operators of mutmut are left out, because nearly all of their mutants die at the first line
that reads the value, and would only raise the share: `x = None` and arguments that become None.
Of its three mutations of a string one is taken, and of an argument only the loss of a keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

REPORTERS = frozenset({"say", "log", "info", "warn", "warning", "print"})
# mutmut shows each operator every node; these are the types that it names.
ANY = cst.CSTNode
TYPING = m.Name("TYPE_CHECKING")


def names_of_text(node: cst.SimpleString) -> Iterable[cst.CSTNode]:
    """A name or a key: other letters. Sentences are texts for people, and stay."""
    if isinstance(node.evaluated_value, str) and node.evaluated_value and not is_sentence(node):
        yield next(iter(mutators.operator_string(node)))


def keyword_removal(node: cst.Call) -> Iterable[cst.CSTNode]:
    for mutant in mutators.operator_arg_removal(node):
        assert isinstance(mutant, cst.Call)
        gone = [one for one in node.args if all(one is not other for other in mutant.args)]
        if len(mutant.args) < len(node.args) and gone[0].keyword is not None:
            yield mutant
    if len(node.args) == 1 and node.args[0].keyword is not None:
        yield node.with_changes(args=[])


def condition_negated(node: cst.If | cst.While) -> Iterable[cst.CSTNode]:
    inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner))


def statement_deleted(node: cst.BaseSmallStatement) -> Iterable[cst.CSTNode]:
    """Calls, checks and what changes a thing in place; without a plain name's assignment the next
    line would not run."""
    if isinstance(node, cst.Expr):
        gone = isinstance(node.value, cst.Call)
    elif isinstance(node, cst.Assign):
        gone = all(isinstance(one.target, (cst.Attribute, cst.Subscript)) for one in node.targets)
    else:
        gone = isinstance(node, (cst.AugAssign, cst.Raise, cst.Assert))
    if gone:
        yield cst.Pass()


def returned_none(node: cst.Return) -> Iterable[cst.CSTNode]:
    if node.value is not None and not m.matches(node.value, m.Name("None")):
        yield node.with_changes(value=cst.Name("None"),
                                whitespace_after_return=cst.SimpleWhitespace(" "))


def decorator_deleted(node: cst.FunctionDef | cst.ClassDef) -> Iterable[cst.CSTNode]:
    for at in range(len(node.decorators)):
        yield node.with_changes(decorators=[*node.decorators[:at], *node.decorators[at + 1:]])


def slice_bound(node: cst.Slice) -> Iterable[cst.CSTNode]:
    for bound in ("lower", "upper"):
        if getattr(node, bound) is not None:
            yield node.with_changes(**{bound: None})


Operator = Callable[[Any], Iterable[cst.CSTNode]]
OPERATORS: tuple[tuple[str, Any, Operator], ...] = (
    ("number", cst.BaseNumber, mutators.operator_number),
    ("name", cst.Name, mutators.operator_name),
    ("augmented", cst.AugAssign, mutators.operator_augmented_assignment),
    ("unary", cst.UnaryOperation, mutators.operator_remove_unary_ops),
    ("method", cst.Call, mutators.operator_symmetric_string_methods_swap),
    ("split", cst.Call, mutators.operator_unsymmetrical_string_methods_swap),
    ("keyword", ANY, mutators.operator_keywords),
    ("swap", ANY, mutators.operator_swap_op),
    ("match", cst.Match, mutators.operator_match),
    ("if_expression", cst.IfExp, mutators.operator_if_exp),
    ("text", cst.SimpleString, names_of_text),
    ("argument", cst.Call, keyword_removal),
    ("condition", (cst.If, cst.While), condition_negated),
    ("deleted", cst.BaseSmallStatement, statement_deleted),
    ("returned", cst.Return, returned_none),
    ("decorator", (cst.FunctionDef, cst.ClassDef), decorator_deleted),
    ("slice", cst.Slice, slice_bound),
)


@dataclass(frozen=True)
class Mutation:
    """One way to change one node; `line` is where the node begins."""

    operator: str
    line: int
    node: cst.CSTNode
    mutant: cst.CSTNode


def mutations(source: str) -> tuple[cst.Module, list[Mutation]]:
    """All mutations of a file, in the order of its nodes, and the module that they belong to."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    lines = wrapper.resolve(PositionProvider)
    found = [Mutation(name, lines[node].start.line, node, mutant)
             for node in _code(wrapper.module) if node in lines
             for name, kind, operator in OPERATORS if isinstance(node, kind)
             for mutant in operator(node)]
    return wrapper.module, found


def render(module: cst.Module, mutation: Mutation) -> str:
    """The file's text with that one node changed."""
    changed = module.deep_replace(mutation.node, mutation.mutant)
    assert isinstance(changed, cst.Module)
    return changed.code


def is_sentence(node: cst.CSTNode) -> bool:
    """Whether a string has a space in it, or the text of an f-string, or one of two to choose."""
    if isinstance(node, cst.SimpleString):
        return any(letter.isspace() for letter in node.raw_value)
    if isinstance(node, cst.FormattedString):
        return any(isinstance(part, cst.FormattedStringText) and " " in part.value
                   for part in node.parts)
    if isinstance(node, cst.ConcatenatedString):
        return is_sentence(node.left) or is_sentence(node.right)
    return isinstance(node, cst.IfExp) and (is_sentence(node.body) or is_sentence(node.orelse))


def _code(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """The nodes of a file that are code: no annotations, docstrings, imports, texts for people."""
    if _is_no_code(node):
        return
    yield node
    if isinstance(node, cst.Raise):
        children: Iterable[cst.CSTNode] = ()  # the class of an error, and its text
    elif isinstance(node, cst.Call) and _reports(node):
        children = (node.func,)
    else:
        children = node.children
    for child in children:
        yield from _code(child)


def _reports(call: cst.Call) -> bool:
    """Whether a call says something to a person, or makes an error that does."""
    name = call.func.attr if isinstance(call.func, cst.Attribute) else call.func
    if not isinstance(name, cst.Name):
        return False
    first = call.args[0].value if call.args else None
    said = isinstance(first, (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString))
    return name.value.endswith("Error") or (name.value in REPORTERS and said)


def _is_no_code(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Expr):
        return isinstance(node.value, (cst.SimpleString, cst.ConcatenatedString, cst.Ellipsis))
    if isinstance(node, cst.Assign):
        return any(m.matches(one.target, m.Name("__all__")) for one in node.targets)
    if isinstance(node, cst.If):
        return m.matches(node.test, TYPING | m.Attribute(attr=TYPING))
    return (isinstance(node, (cst.Annotation, cst.Import, cst.ImportFrom, cst.TypeAlias))
            or is_sentence(node))
