"""The errors that the command line turns into a single clear line."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

_WRONG_PATHS = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EACCES,
    errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.EBUSY,
    errno.ETXTBSY, errno.ENXIO})


class InputError(ValueError):
    """What a user gave is wrong: the message says what, where, and what was expected.

    Raised for bad files, configs, ids and shapes; exit code 2. Anything else that escapes is a
    fault of ours, or of the machine, and ends with exit code 1.
    """


class TrainingError(RuntimeError):
    """Training cannot go on, such as a loss that is no longer finite; exit code 1."""


class Preempted(RuntimeError):
    """A signal asked a training to stop, and it has saved; exit code 75 (EX_TEMPFAIL)."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.5,
                 form: str = "; {}") -> str:
    """`; did you mean 'x'?` with the known word that is most similar to `word`; "" if none is.

    cutoff: the least similarity, from 0 to 1, as `difflib` measures it. form: what stands around.
    """
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return form.format(f"did you mean {nearest[0]!r}?") if nearest else ""


def describe_os_error(error: OSError) -> tuple[str, bool]:
    """One line with file or folder and cause; and whether a path that was given is to blame.

    A path that is missing, not writable or of another kind is the user's; a disk that is full or
    broken is the machine's.
    """
    cause = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    places = [os.fsdecode(name) for name in (error.filename, error.filename2)
              if isinstance(name, str | bytes)]
    line = f"{' -> '.join(places)}: {cause}" if places else cause
    return " ".join(line.split()) or type(error).__name__, error.errno in _WRONG_PATHS
