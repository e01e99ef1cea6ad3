"""What the command line prints: tables for people, JSON for programs.

Ids, titles and paths are data. A console made here prints them as they are: no markup, no emoji
codes. What a terminal would obey or cannot show comes as an escape, such as `\\x1b`.
"""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rec_jax.jsons import dumps

if TYPE_CHECKING:  # what `--help` does without
    from rich.console import Console

_CONTROLS = ("Cc", "Cf", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # of scripts and emoji; they show nothing by themselves


class NobodyReads(Exception):
    """The other end of stdout is closed."""


def console(*, stderr: bool = False) -> Console:
    """A console that prints every string of data as it is."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process here; `main` says why it ends

    return Plain(stderr=stderr, markup=False, emoji=False, highlight=False)


def as_is(value: object) -> str:
    """Text that shows what is there, and does nothing to the terminal."""
    shown = "".join(_escaped(one) if unicodedata.category(one) in _CONTROLS
                    and one not in _JOINERS else one for one in str(value))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def number(value: float, digits: int = 4) -> str:
    """A figure for people; a dash where there is none."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """Such as `0.4 s`, `2 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *,
                numbers: Sequence[str] = (), stderr: bool = False) -> None:
    """A table whose cells are shown whole.

    numbers: the columns that stand to the right.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*map(as_is, row))
    console(stderr=stderr).print(table)


def print_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """A title, and below it a name and a value a line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(f"  {as_is(name)}", as_is(value))
    shown = console()
    shown.print(as_is(title))
    shown.print(table)


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON object on stdout; numbers that JSON does not have become null."""
    print(dumps(value))


def say(line: str) -> None:
    """One line for people, on stderr."""
    print(line, file=sys.stderr)


def open_streams() -> None:
    """Make stdout and stderr safe to write to: any character, and also if one was closed.

    A closed stdout is no reason to stop a training; what is printed to it fails, and says so.
    """
    for name, mode, descriptor in (("stdout", os.O_RDONLY, 1), ("stderr", os.O_WRONLY, 2)):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, mode)  # another file would take the free number
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False, encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def own_stdout() -> None:
    """Keep stdout for what is printed here; what libraries write there goes to stderr.

    Gloo tells on stdout that processes have joined, and a program could not read the JSON.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace")


def drop_stdout() -> None:
    """Forget what stdout still holds: it cannot be written, and Python would try once more."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # it is no file
        descriptor = 1
    os.dup2(devnull, descriptor)
    os.close(devnull)
