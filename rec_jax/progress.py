"""Progress for people, on stderr; nothing for pipes that ask for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """Where a long job says how far it is."""

    def begin(self, total: int, done: int = 0) -> None:
        """The job has `total` units, of which `done` are behind it."""
        ...

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` replaces the text behind the bar, if given."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class Silent:
    """A reporter that says nothing."""

    def begin(self, total: int, done: int = 0) -> None:
        del total, done

    def advance(self, count: int = 1, note: str = "") -> None:
        del count, note

    def say(self, text: str) -> None:
        del text


class _Bar:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, note="")

    def begin(self, total: int, done: int = 0) -> None:
        self._progress.start()
        self._progress.reset(self._task, total=total, completed=done)

    def advance(self, count: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, advance=count, note=note)
        else:
            self._progress.update(self._task, advance=count)

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


@contextmanager
def progress_bar(title: str) -> Iterator[Reporter]:
    """A bar with counts, time so far and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    console = Console(stderr=True, soft_wrap=True)
    progress = Progress(*columns, console=console, refresh_per_second=4)
    try:
        yield _Bar(progress, title)
    finally:
        if progress.live.is_started:
            progress.stop()
