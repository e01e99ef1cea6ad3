"""Side features: what is known of an interaction beside its item, as small codes.

A feature of a place is one code or a few, and each code a row of a small table (see
`rec_jax.model.features`); code 0 is "unknown". Here is what a run may ask for, whether a dataset
has it, and its codes. A time gap has none here: it is made from the batch's times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rec_jax.data.attributes import BeginConfig, open_attributes, planned_categories
from rec_jax.data.dataset import Dataset
from rec_jax.data.queries import Found, Timeline, open_timeline
from rec_jax.errors import InputError, did_you_mean
from rec_jax.ranges import check

Codes = Mapping[str, npt.NDArray[Any]]
"""int32 `[n, K]` by the path of a feature, for n interactions; f32 of queries."""

EVENT = "features/event"
"""Path of the types of events."""
QUERY = "features/query"
"""Path of the map of queries' vectors, and of these in a batch: f32, not codes."""
_PLANNED_CATEGORIES, _PLANNED_VALUES, _PLANNED_COLUMNS = 1024, 4, 64


@dataclass(frozen=True)
class FeatureConfig:
    """One `[[features]]` entry of a run.

    kind: event, the type of the interaction, such as view, cart or purchase; item_category, a
      categorical attribute of the item that the dataset keeps (an item of
      several categories has the mean of their vectors); time_gap, seconds since the item before
      it in the row, in logarithmic buckets, unknown for the first; rating, of the interaction;
      query, the searches between the items, which are places of their own (`data.queries`).
    name: of the attribute, for item_category, and of the texts' vectors, for query.
    """

    kind: Literal["item_category", "time_gap", "rating", "event", "query"]
    name: str = ""

    def __post_init__(self) -> None:
        check(self, "features.")
        if (self.kind in ("item_category", "query")) != bool(self.name):
            raise InputError(f"a feature of kind {self.kind!r} "
                             f"{'needs' if not self.name else 'has no'} `name`; expected one for "
                             "'item_category' and 'query' alone")

    @property
    def path(self) -> str:
        """Of its table among the encoder's parameters, and of its codes in a batch."""
        return f"features/{self.name if self.kind == 'item_category' else self.kind}"


Read = FeatureConfig | BeginConfig
"""What a model reads beside items: a side feature, or the places in front of a history."""


class Feature(NamedTuple):
    """A feature as a dataset has it. categories: codes are 1 to that; 0 for a time gap, whose
    buckets are fixed; values: K, codes of a place. Of queries both are the columns of a place."""

    kind: str
    path: str
    categories: int
    values: int = 1


def uses_gaps(features: Sequence[Read]) -> bool:
    """Whether batches must carry times for their sake."""
    return any(feature.kind == "time_gap" for feature in features)


def find_features(features: Sequence[Read], dataset: Dataset) -> tuple[Feature, ...]:
    """The features that `dataset` has of those that are asked for, which must be all.

    Raises:
      InputError: the dataset keeps no such attribute, no ratings or no times.
    """
    return tuple(_find(feature, dataset) for feature in features)


def planned_features(features: Sequence[Read]) -> tuple[Feature, ...]:
    """Stand-ins for a plan, which knows no dataset: attributes of 1,024 categories."""
    return tuple(
        Feature("begin", feature.path, planned_categories(feature), 1 + len(feature.columns))
        if isinstance(feature, BeginConfig) else
        Feature(feature.kind, feature.path, 1 + _PLANNED_COLUMNS, 1 + _PLANNED_COLUMNS)
        if feature.kind == "query" else
        Feature(feature.kind, feature.path, _PLANNED_CATEGORIES if feature.name else 0,
                _PLANNED_VALUES if feature.name else 1) for feature in features)


def begin_among(features: Sequence[Read]) -> BeginConfig | None:
    """What stands in front of histories, if anything does."""
    return next((each for each in features if isinstance(each, BeginConfig)), None)


def timeline_of(features: Sequence[Read], dataset: Dataset) -> Timeline | None:
    """The histories with their queries, where these are read."""
    name = next((each.name for each in features if each.kind == "query"), None)
    return None if name is None else open_timeline(dataset, name)


def check_queries(features: Sequence[Read], dataset: Dataset, said: Any) -> None:
    """Raises InputError where other vectors of queries lie beside a dataset than a run was trained
    with. said: of its data position, by the run's checkpoint."""
    timeline = timeline_of(features, dataset)
    known = said.get("queries") if isinstance(said, Mapping) else None
    if timeline is not None and known not in (None, timeline.hash):
        raise InputError(f"the query vectors beside {dataset.folder} are not those that the run "
                         "was trained with; expected vectors by the same encoder")


def read_places(features: Sequence[Read], timeline: Timeline, found: Found) -> Codes:
    """As `read_codes`, of places of a timeline, and the vectors of the queries there."""
    dataset, asked = timeline.dataset, found.query >= 0
    position = np.where(asked, 0, found.position)
    codes = read_codes(features, dataset, dataset.items.take(position, mode="clip"), position)
    codes = {path: np.where(asked[:, None], 0, values) for path, values in codes.items()}
    if EVENT in codes:
        codes[EVENT] = timeline.events(found, codes[EVENT][:, 0])[:, None]
    return {**codes, QUERY: timeline.rows(found.query)}


def read_codes(features: Sequence[Read], dataset: Dataset, items: npt.NDArray[Any],
               places: npt.NDArray[np.int64] | slice | None) -> Codes:
    """Codes of n interactions, but for time gaps, and those of begin places, where none are.

    items: int `[n]`; places: of the interactions in the dataset's arrays; None: they are not
      from there, and their ratings and types are unknown.
    """
    found: dict[str, npt.NDArray[np.int32]] = {}
    for feature in features:
        if feature.kind == "item_category":
            # Ids past the end are left for the step to count as bad.
            found[feature.path] = np.take(dataset.item_features[feature.name], items, axis=0,
                                          mode="clip")
        elif feature.kind == "rating":
            codes = (np.zeros(len(items), np.int32) if places is None or dataset.ratings is None
                     else dataset.ratings[places].astype(np.int32))
            found[feature.path] = codes[:, None]
        elif feature.kind == "event":
            codes = (np.zeros(len(items), np.int32) if places is None or dataset.events is None
                     else dataset.events[places].astype(np.int32))
            found[feature.path] = codes[:, None]
    return found


def vocabularies(features: Sequence[Read], dataset: Dataset) -> dict[str, Any]:
    """What the codes of each feature stand for, by its path: equal if and only if they agree."""
    meanings = {"item_category": lambda name: dataset.meta["item_features"][name]["hash"],
                "rating": lambda name: list(dataset.rating_values),
                "event": lambda name: list(dataset.event_types),
                "query": lambda name: open_timeline(dataset, name).hash}
    return {feature.path: [*open_attributes(feature, dataset).values.items()]
            if isinstance(feature, BeginConfig) else meanings[feature.kind](feature.name)
            for feature in features
            if isinstance(feature, BeginConfig) or feature.kind in meanings}


def _find(feature: Read, dataset: Dataset) -> Feature:
    if isinstance(feature, BeginConfig):
        return Feature(feature.kind, feature.path, open_attributes(feature, dataset).categories,
                       1 + len(feature.columns))
    if feature.kind == "time_gap":
        if dataset.times is None:
            raise InputError(f"feature 'time_gap': {dataset.folder} has no times; prepare it with "
                             "columns.time")
        return Feature(feature.kind, feature.path, 0)
    if feature.kind == "rating":
        if dataset.ratings is None:
            raise InputError(f"feature 'rating': {dataset.folder} has no ratings, or more than "
                             "255 different ones; prepare it with columns.rating")
        return Feature(feature.kind, feature.path, len(dataset.rating_values))
    if feature.kind == "event":
        if dataset.events is None:
            raise InputError(f"feature 'event': {dataset.folder} keeps no types of events; prepare "
                             "it with columns.event")
        return Feature(feature.kind, feature.path, len(dataset.event_types))
    if feature.kind == "query":
        width = open_timeline(dataset, feature.name).width
        return Feature(feature.kind, feature.path, width, width)
    known = dataset.item_features
    if feature.name not in known:
        hint = did_you_mean(feature.name, known)
        raise InputError(f"feature {feature.name!r}: {dataset.folder} keeps no such attribute of "
                         f"its items; it has {', '.join(map(repr, known)) or 'none'}{hint} "
                         "(rec-jax prepare --item-feature keeps one)")
    return Feature(feature.kind, feature.path, dataset.categories(feature.name),
                   known[feature.name].shape[1])
