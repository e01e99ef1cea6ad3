"""Types of events, such as view, cart and purchase: small numbers beside the interactions.

`events.npy` of a dataset has one of each, uint8 `[N]`; type t is entry t - 1 of `events` in its
`meta.json`, in the order in which the source has them first, and 0 is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rec_jax.errors import InputError, did_you_mean


def event_codes(folder: Path | str, known: Sequence[str] | None,
                names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Codes uint8 `[n]` of types of events by their names.

    known: the types of dataset `folder`; None or empty: it keeps none.

    Raises:
      InputError: one of `names` is none of them; it says which there are.
    """
    if not known:
        raise InputError(f"{folder} keeps no types of events, of which {', '.join(names)} would be "
                         "some; prepare it with columns.event")
    places = {name: place + 1 for place, name in enumerate(known)}
    for name in names:
        if name not in places:
            raise InputError(f"event {name!r} is no type of {folder}; it has "
                             f"{', '.join(known)}{did_you_mean(name, known)}")
    return np.array([places[name] for name in names], np.uint8)
