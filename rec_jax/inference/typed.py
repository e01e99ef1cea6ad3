"""A history as somebody types it: ids and times, from options of a command or from files."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Sequence
from pathlib import Path

from rec_jax.data.dataset import Dataset
from rec_jax.data.queries import Query
from rec_jax.errors import InputError
from rec_jax.files import is_unicode


def read_ids(dataset: Dataset, texts: Sequence[str]) -> list[str]:
    """Item ids of `texts`, each of which is one id, or several with commas between.

    A text that is an id of the dataset is that id, with its commas and blanks. Any other is cut at
    commas into ids of the dataset, of which double quotes may enclose each, as in a CSV file;
    blanks around ids do not count, nor do empty parts.

    Raises:
      InputError: a part is no id of the dataset, or a text can be cut into ids in two ways.
    """
    ids = dataset.item_ids()
    most = 1 + int(ids.str.count_matches(",", literal=True).max() or 0)  # type: ignore[arg-type]
    parts = {text: text.split(",") for text in texts}
    quoted = {text: _unquoted(text) for text in texts}
    wanted = {name for text in texts for start, end in _spans(len(parts[text]), most)
              for name in _names(parts[text][start:end])}
    wanted.update(texts, *quoted.values())
    known = set(ids.filter(ids.is_in(list(filter(is_unicode, wanted)))).to_list())
    return [item for text in texts
            for item in ([text] if text in known else
                         quoted[text] if quoted[text] and known.issuperset(quoted[text]) else
                         _cut(dataset, text, parts[text], known, most))]


def read_history(dataset: Dataset, texts: Sequence[str], whole: bool = False) -> list[str | Query]:
    """Ids of `texts` as `read_ids` has them, or where each is `whole` an id by itself; and queries:
    what stands behind the ? of a text that begins with one, and is no id of the dataset."""
    ids = dataset.item_ids()
    marked = [text for text in texts if text.startswith("?")]
    known = set(ids.filter(ids.is_in(list(filter(is_unicode, marked)))).to_list()) if marked else ()
    found: list[str | Query] = []
    for text in texts:
        if text.startswith("?") and text not in known and text[1:].strip():
            found.append(Query(text[1:]))
        else:
            found += [text] if whole else read_ids(dataset, [text])
    return found


def read_times(texts: Sequence[str]) -> list[int]:
    """Seconds since 1970 of `texts`, each of which is one time, or several with commas between."""
    return [seconds_of(part) for text in texts for part in text.split(",") if part.strip()]


def seconds_of(text: str) -> int:
    """A number of seconds since 1970, or a date of ISO 8601, in UTC unless it says otherwise:
    whole seconds, rounded down.

    Raises:
      InputError: it is neither.
    """
    try:
        number = math.floor(float(text))
        if abs(number) < 2**62:
            return number
    except (ValueError, OverflowError):  # of text, and of NaN and infinity
        try:
            date = datetime.datetime.fromisoformat(text.strip())
            if date.tzinfo is None:
                date = date.replace(tzinfo=datetime.UTC)
            return math.floor(date.timestamp())
        except (ValueError, OverflowError):
            pass
    raise InputError(f"time {text!r} is neither seconds since 1970 nor a date such as "
                     "2026-01-31T12:00:00")


def read_lines(path: Path | str) -> list[str]:
    """The lines of a text file as they stand, without empty ones.

    Raises:
      InputError: the file cannot be read, or is no UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line]


def _unquoted(text: str) -> list[str]:
    """The fields of a line of CSV that has quotes; nothing where it has none, or is not CSV."""
    if '"' not in text:
        return []
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []


def _spans(count: int, most: int) -> list[tuple[int, int]]:
    return [(start, end) for start in range(count)
            for end in range(start + 1, min(count, start + most) + 1)]


def _names(parts: Sequence[str]) -> tuple[str, str]:
    """What parts between commas may be together: the text as it is, and without outer blanks."""
    text = ",".join(parts)
    return text, text.strip()


def _cut(dataset: Dataset, text: str, parts: Sequence[str], known: set[str],
         most: int) -> list[str]:
    """The only way to cut a text into known ids."""
    ways: list[list[list[str]]] = [[[]], *([] for _ in parts)]  # of each beginning, at most two
    for start, end in _spans(len(parts), most):
        raw, bare = _names(parts[start:end])
        name = raw if raw in known else bare
        if name in known or not name:
            tail = [name] if name in known else []
            ways[end] = [*ways[end], *(head + tail for head in ways[start])][:2]
    if not ways[-1]:
        furthest = max(place for place, found in enumerate(ways) if found)
        dataset.item_index([parts[furthest].strip()])  # says that it is unknown
    if len(ways[-1]) > 1:
        first, second = ways[-1]
        raise InputError(f"history {text!r} is {first} or {second}; give each id by itself")
    return ways[-1][0]
