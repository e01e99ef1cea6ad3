"""Progress for people, on stderr: a bar on a terminal, lines elsewhere, nothing beside JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Reporter(Protocol):
    """Where a long job says how far it is."""

    def begin(self, total: int | None, done: int = 0) -> None:
        """The job has `total` units, or nobody knows how many; `done` are behind it."""
        ...

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` replaces the text behind the bar, if given."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class Silent:
    """A reporter that says nothing."""

    def begin(self, total: int | None, done: int = 0) -> None:
        del total, done

    def advance(self, count: int = 1, note: str = "") -> None:
        del count, note

    def say(self, text: str) -> None:
        del text


class _Lines(Silent):
    """A log file keeps what is said; a bar would fill it."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, note="")

    def begin(self, total: int | None, done: int = 0) -> None:
        self._progress.start()
        self._progress.reset(self._task, total=total, completed=done)
        if total is None:  # `reset` keeps the total where it gets none
            self._progress.tasks[self._task].total = None

    def advance(self, count: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, advance=count, note=note)
        else:
            self._progress.update(self._task, advance=count)

    def say(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)


class _Count(ProgressColumn):
    """`1,200 / 3,400 rows`, and without a total `1,200 rows`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f" / {int(task.total):,}"
        return Text(f"{int(task.completed):,}{total} {self._unit}".rstrip())


@contextmanager
def progress_bar(title: str, *, show: bool = True, unit: str = "") -> Iterator[Reporter]:
    """A bar with counts, time so far and time left, where stderr is a terminal.

    show: false where nothing may be said.
    unit: what is counted; "bytes" are shown as MB.
    """
    # Notes and lines hold names of the user's: they are no markup.
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not show:
        yield Silent()
        return
    if not console.is_terminal:
        yield _Lines()
        return
    count = DownloadColumn() if unit == "bytes" else _Count(unit)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), count,
               TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}", markup=False))
    progress = Progress(*columns, console=console, refresh_per_second=4)
    try:
        yield _Bar(progress, title)
    finally:
        if progress.live.is_started:
            progress.stop()


def reporter_of(title: str, show: bool) -> AbstractContextManager[Reporter]:
    """A bar for people, or silence."""
    return progress_bar(title) if show else nullcontext(Silent())
