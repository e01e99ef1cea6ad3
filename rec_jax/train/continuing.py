"""A run goes on from another one when its dataset has grown: it is tested, and then trained.

`prepare --append` adds the interactions of a new period to a dataset; `train --continue RUN` makes
a run of what came of it:

    start   the state of RUN's last checkpoint: rows, encoder, the state of both optimizers, counts
            and averages; new items and users have the rows that every table begins with, by the
            hash of seed and id
    test    every new interaction is a target, asked after all of its user's before it, with weights
            that have not seen it: a line "new" of step 0 in `metrics.jsonl`, with its protocol; and
            the validation users before training, a line "valid" of step 0
    train   on what was not trained on before, and on some old histories again
            (`rec_jax.data.fresh`), validated and saved as ever

Its config names the run and the step that it goes on from, so that a run that was killed before its
first checkpoint begins again there, and the config alone repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rec_jax import config as configs
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError
from rec_jax.inference.protocol import choose_panel, protocol
from rec_jax.progress import Reporter
from rec_jax.run import Run, RunConfig
from rec_jax.train.build import Built
from rec_jax.train.growing import Start
from rec_jax.train.log import MetricsLog, read_metrics
from rec_jax.train.state import TrainState

TESTED: Literal["new"] = "new"
"""Kind of the line of `metrics.jsonl`, and the split of its protocol."""


def going_on(source: Run, data: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run that goes on from the last checkpoint of `source` with dataset `data`.

    It is that of `source`, for one pass over what is new. overrides: lines over it, such as
    `train.steps=100` and `continual.replay=0.5`.

    Raises:
      InputError: no such run, it has no checkpoint, or its learning rate has come to its end.
    """
    mapping = source.saved_config()
    mapping["continual"] = {**mapping.get("continual", {}), "run": str(source.folder),
                            "step": _last_step(source)}
    train = {name: value for name, value in mapping.get("train", {}).items() if name != "steps"}
    mapping = {**mapping, "train": {**train, "epochs": 1.0},
               "data": {**mapping["data"], "path": data}}
    found = configs.build(RunConfig, configs.override(mapping, overrides), str(source.config_path),
                          trust_code=source.trust_code)
    if found.optimizer.schedule != "constant":
        raise InputError(f"the learning rate of {source.folder} followed a "
                         f"{found.optimizer.schedule} to its end; expected optimizer.schedule = "
                         "'constant' and an optimizer.rate for a run that goes on")
    return found


def _last_step(source: Run) -> int:
    if source.checkpoints.is_dir():
        with Checkpoints(source.checkpoints, read_only=True) as checkpoints:
            if (step := checkpoints.latest()) is not None:
                return step
    raise InputError(f"run {source.folder} has no checkpoint yet")


def start_of(config: RunConfig, run: Run, built: Built) -> Start | None:
    """Where a run starts by its config; None: from nothing.

    Raises:
      InputError: its dataset was not appended to that of the run that it goes on from.
    """
    if config.continual is None:
        return None
    source = Run(Path(config.continual.run), run.trust_code)
    source.check_begun()
    with Checkpoints(source.checkpoints, read_only=True) as checkpoints:
        before = checkpoints.info(config.continual.step).extra.get("dataset")
    appended = built.dataset.meta["appended"]["to"]
    if before != appended:
        raise InputError(f"{built.dataset.folder} was appended to a dataset with content hash "
                         f"{appended[:12]}, and run {source.folder} was trained on "
                         f"{str(before)[:12]}; expected the dataset of that run, with one period "
                         "appended")
    return Start(source, config.continual.step, keep_state=True)


def trained_before(dataset: Dataset) -> Dataset:
    """A dataset that was appended to, whose training part is what the run before had: nothing that
    is new says what is popular."""
    assert dataset.old_train_end is not None
    return replace(dataset, train_end=dataset.old_train_end)


def measure_before(state: TrainState, built: Built, run: Run, log: MetricsLog,
               reporter: Reporter) -> None:
    """Measure a state that has not seen what is new, unless that was done: two lines of step 0."""
    config, dataset = built.config, built.dataset
    known = {line["kind"] for line in read_metrics(run.metrics_path)}
    about = {"epoch": 0.0, "seconds": 0.0}
    if "valid" not in known:
        log.write("valid", 0, {**about, **built.validator(state)}, {
            "protocol": protocol(dataset, "valid", config.evaluate, built.validator.panel)})
    if TESTED in known:
        return
    try:
        panel = choose_panel(dataset, TESTED, config.evaluate, config.evaluate.users, config.seed)
    except InputError as error:  # training goes on all the same
        reporter.say(f"not tested on what is new: {error}")
        return
    metrics = built.validator.ranked(state, panel, trained_before(dataset))
    appended, settings = dataset.meta["appended"], config.continual
    assert settings is not None and dataset.old_end is not None
    behind = int((np.asarray(dataset.offsets[1:]) - dataset.old_end).sum())
    log.write(TESTED, 0, {**about, **metrics}, {"protocol": {
        **protocol(dataset, TESTED, config.evaluate, panel),
        "weights": f"step {settings.step} of {Path(settings.run).name}, before training on any of "
                   "it",
        "users": len(np.unique(panel.users)), "targets": len(panel.users),
        "targets_of_new_items": int((panel.targets >= appended["items"]).sum()),
        "targets_of_new_users": int((panel.users >= appended["users"]).sum()),
        "first_interactions_left_out": behind - len(dataset.targets(TESTED)[0]),
        "late_interactions_left_out": appended["late"]}})
    name = config.evaluate.metric
    if name in metrics:
        reporter.say(f"before training: {name} {metrics[name]:.4f} of {len(panel.users)} new "
                     "interactions")


def found_before(path: Path, config: RunConfig) -> dict[str, Any]:
    """What `measure_before` found, for a summary; nothing where a run goes on from no other."""
    if config.continual is None:
        return {}
    lines = {line["kind"]: line for line in reversed(read_metrics(path)) if line["step"] == 0}
    drop = ("kind", "step", "epoch", "seconds")
    return {"before": {kind: {name: value for name, value in lines[kind].items()
                              if name not in drop}
                       for kind in (TESTED, "valid") if kind in lines}}
