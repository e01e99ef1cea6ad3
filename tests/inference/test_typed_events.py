"""A model that reads types of events: of users, and of histories that somebody gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from command import Command, refused

from rec_jax import config
from rec_jax.data.dataset import Dataset
from rec_jax.data.features import EVENT, find_features
from rec_jax.data.prepare import Columns, PrepareConfig, SplitConfig, prepare
from rec_jax.errors import InputError
from rec_jax.inference.protocol import choose_panel, protocol
from rec_jax.inference.retrieve import recommend
from rec_jax.inference.served import Served, counts_of
from rec_jax.model.encoder import build_encoder
from rec_jax.run import Run, RunConfig
from rec_jax.run_sections import EvaluateConfig
from rec_jax.tables.table import padded_size
from rec_jax.train.build import build

Mapping = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("events")
    random = np.random.default_rng(3)
    lines = ["user_id,item_id,event"]
    for user in range(20):
        kinds = ["view", *random.choice(["view", "cart", "buy"], 5), "buy", "view", "buy", "cart"]
        lines += [f"u{user},i{random.integers(25)},{kind}" for kind in kinds]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(str(folder / "log.csv"), str(folder / "d"),
                          columns=Columns(event="event"), split=SplitConfig(event="buy")))
    return Dataset.open(folder / "d")


@pytest.fixture(scope="module")
def served(dataset: Dataset, tiny_mapping: Mapping) -> Served:
    """A model whose numbers nobody trained, with types far apart."""
    mapping = tiny_mapping(f"data.path='{dataset.folder}'", "data.targets=['buy']")
    mapping["features"] = [{"kind": "event"}]
    made = config.build(RunConfig, mapping)
    encoder, params = build_encoder(
        made.encoder, dim=16, length=12, causal=True, precision="f32", seed=0,
        features=find_features(made.features, dataset))
    random = np.random.default_rng(1)
    params = {**params, "features/event": jnp.asarray(random.standard_normal((4, 16)),
                                                      jnp.float32)}
    rows = random.standard_normal((padded_size(dataset.num_items), 16))
    return Served(Run(dataset.folder.parent / "run"), made, dataset, encoder, params,
                  jnp.asarray(rows, jnp.float32), 0)


def test_a_history_with_types_is_read_as_that_of_a_user(served: Served) -> None:
    dataset = served.dataset
    (user,) = dataset.user_index(["u4"])
    start, end = int(dataset.offsets[user]), int(dataset.offsets[user + 1])
    history = dataset.item_ids()[dataset.items[start:end]].to_list()
    assert dataset.events is not None
    types = [dataset.event_types[code - 1] for code in dataset.events[start:end]]

    def scores(**asked: Any) -> list[tuple[str, float]]:
        return [(entry.item, entry.score) for entry in recommend(
            served, k=25, filter_seen=False, **asked)]

    known = scores(user="u4")
    assert scores(history=history, events=types) == known
    assert scores(history=history, events=["view"] * len(types)) != known
    assert scores(history=history) not in (known, scores(history=history,
                                                         events=["view"] * len(types)))
    with pytest.raises(InputError, match="9 types of events for 10 items; expected one for each"):
        scores(history=history, events=types[1:])
    with pytest.raises(InputError, match=r"event 'sell' is no type of .*; it has view"):
        scores(history=history[:1], events=["sell"])
    with pytest.raises(InputError, match="types of events belong to a history"):
        scores(user="u4", events=types)


def test_only_asked_types_are_evaluated_and_said(dataset: Dataset) -> None:
    settings = EvaluateConfig(event="buy", filter_seen=False)
    panel = choose_panel(dataset, "test", settings)
    every = choose_panel(dataset, "test", EvaluateConfig(filter_seen=False))
    np.testing.assert_array_equal(panel.ends, every.ends)  # the split holds purchases out
    assert protocol(dataset, "test", settings, panel)["event"] == "buy"
    assert "event" not in protocol(dataset, "test", EvaluateConfig(), every)
    carts = choose_panel(dataset, "test", EvaluateConfig(event="cart", filter_seen=False))
    np.testing.assert_array_equal(carts.ends, every.ends + 1)
    with pytest.raises(InputError, match=r"event 'sell' is no type of .*; it has view"):
        choose_panel(dataset, "test", EvaluateConfig(event="sell"))
    with pytest.raises(InputError, match="has no event 'view' to test on"):
        choose_panel(dataset, "test", EvaluateConfig(event="view", filter_seen=False))


def test_popularity_counts_the_labels_of_a_run(served: Served) -> None:
    dataset, expected = served.dataset, np.zeros(served.dataset.num_items, int)
    assert dataset.events is not None
    (code,) = dataset.event_codes(["buy"])
    for start, end in zip(dataset.offsets[:-1].tolist(), dataset.train_end.tolist(), strict=True):
        for place in range(max(start + 1, end - 12), end):
            expected[dataset.items[place]] += dataset.events[place] == code
    np.testing.assert_array_equal(counts_of(served.config, dataset), expected)


def test_types_of_events_come_once(tiny_run: Path, rec_jax: Command) -> None:
    line = refused(rec_jax("recommend", tiny_run, "--history", "0001", "--events", "view",
                           "--events-file", "types.txt"))
    assert "come from options or from a file, not from both" in line
    line = refused(rec_jax("recommend", tiny_run, "--history", "0001", "--events", "view"))
    assert "keeps no types of events" in line and "prepare it with columns.event" in line
    line = refused(rec_jax("evaluate", tiny_run, "--event", "view"))
    assert "keeps no types of events" in line


def test_a_run_trains_on_the_labels_that_its_config_names(served: Served) -> None:
    batch = build(served.config).stream.batch(0)
    dataset = served.dataset
    assert dataset.events is not None
    kept = batch["targets"] >= 0
    assert 0 < kept.sum() < (batch["segments"] > 0).sum()
    # The type of a target is that of the next input, where the segment has one.
    (code,) = dataset.event_codes(["buy"])
    same = (batch["segments"][:, 1:] == batch["segments"][:, :-1]) & (batch["segments"][:, 1:] > 0)
    np.testing.assert_array_equal(kept[:, :-1][same], batch[EVENT][:, 1:, 0][same] == code)
