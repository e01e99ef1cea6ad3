"""The errors of a checkpoint that cannot be read, and how they name a cause."""

from __future__ import annotations

import re
from pathlib import Path

from rec_jax.errors import InputError, first_line

_ABSOLUTE_PATH = re.compile(r'"?(?<![\w.])(?:/[^/\s":]+)+"?')


class Damaged(InputError):
    """A checkpoint that does not hold what was written; the message names it and the file."""


class Missing(InputError):
    """There is no checkpoint of that step, or no longer."""


def describe_cause(error: BaseException) -> str:
    """What an error of tensorstore or the system says, without the paths of this machine."""
    return _ABSOLUTE_PATH.sub("the file", first_line(error))[:300]


def short_path(path: Path) -> str:
    """The last three parts of a path, such as `step_12/model/leaves.json`."""
    return "/".join(path.parts[-3:])
