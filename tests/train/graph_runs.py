"""A run whose vectors come of a graph, trained whole, and stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stopping import StopAfter, Stopped

from rec_jax import api
from rec_jax.inference.retrieve import Recommender
from rec_jax.run import Run, RunConfig
from rec_jax.train.loop import run_training


def logged(run: Path, name: str) -> list[float]:
    return [line[name] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if name in line]


def whole_and_resumed(settings: RunConfig, folder: Path, falls_to: float
                      ) -> tuple[dict[str, Any], Recommender]:
    """What training `folder / "whole"` gave, and its model after 12 steps. A run that stopped after
    6 and went on has its losses and rows; the losses fall to that share of the first ones."""
    whole, stopped = api.train(settings, run=folder / "whole"), folder / "stopped"
    with pytest.raises(Stopped):
        run_training(Run(stopped), settings, StopAfter(6))
    api.train(resume=stopped)
    losses = logged(folder / "whole", "loss")
    assert np.mean(losses[-3:]) < falls_to * np.mean(losses[:3])
    assert logged(stopped, "loss") == losses

    model, other = (api.load(run, step=12) for run in (folder / "whole", stopped))
    np.testing.assert_array_equal(model.served.rows, other.served.rows)
    assert model.served.params.keys() == other.served.params.keys()
    for path, value in model.served.params.items():
        np.testing.assert_array_equal(value, other.served.params[path], err_msg=path)
    return whole, model
