"""Make an adapted run an ordinary one: the thin products of LoRA go into the matrices beneath.

    W + (alpha / r) A B    ->    W

The new run has the weights of one checkpoint and a config without `lora` and `tune`; it is
evaluated, exported and started from as any other. Its optimizer has seen nothing yet.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from rec_jax import files
from rec_jax.checkpoint import Checkpoints
from rec_jax.config import to_mapping
from rec_jax.data.content import trained_content
from rec_jax.errors import InputError
from rec_jax.inference.checkpoint_of import check_dataset, open_checkpoint
from rec_jax.model.lora import merged
from rec_jax.run import Run
from rec_jax.text.item_encoder import write_tuned
from rec_jax.train.build import build
from rec_jax.train.state import to_items

TEXT = "text"
WEIGHTS = ("model", "average", TEXT)
"""Parts of a checkpoint that are weights."""


def write_text_encoder(run: Path | str, *, out: Path | str, step: int | None = None,
                       trust_code: bool = False) -> dict[str, Any]:
    """Write the text encoder of the best checkpoint of `run`, or of that of `step`, as a new folder
    that `rec-jax embed` reads, with its adapters in its matrices.

    Returns the folder and the step. trust_code: see `rec_jax.train`.

    Raises:
      InputError: the run has none, or no such checkpoint, or `out` exists.
    """
    folder = Run(Path(run), trust_code)
    config = folder.config()
    if trained_content(config.content) is None:
        raise InputError(f"run {run} has no text encoder of its own; expected a run with "
                         "content.encoder")
    built, opened = build(config), open_checkpoint(folder, step)
    assert built.texts is not None
    check_dataset(built.dataset, str(opened.info.extra.get("dataset")))
    like = to_items(built.state)[TEXT]
    write_tuned(built.texts, opened.restore({TEXT: like})[TEXT], Path(out))
    return {"folder": str(out), "step": opened.info.step}


def merge_adapters(run: Run, out: Path, step: int | None = None) -> dict[str, Any]:
    """Write run `out` with the weights of the best checkpoint of `run`, or of that of `step`; it is
    whole or absent.

    Returns the folder, the step and the paths of the matrices that were merged.

    Raises:
      InputError: `run` has no adapters or no such checkpoint, or there is a run in `out`.
    """
    config = run.config()
    if not config.lora:
        raise InputError(f"run {run.folder} has no adapters to merge; expected a run with [[lora]]")
    Run(out).check_free()
    # What adapted a text encoder goes into it, so that there is nothing but all of it to train.
    ordinary = dataclasses.replace(config, lora=(), tune=(), content=tuple(
        dataclasses.replace(part, train="all") if part.encoder else part
        for part in config.content))
    adapted, built = build(config), build(ordinary)
    adapted.tiers.check_alone("merging adapters")
    opened = open_checkpoint(run, step)
    chosen = opened.info.step
    check_dataset(built.dataset, str(opened.info.extra.get("dataset")))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding), to_items(adapted.state))
    found = opened.restore({part: like[part] for part in WEIGHTS if part in like}, widen=True)
    items = to_items(built.state)
    items["training"]["step"] += chosen
    for part, weights in found.items():
        if part == TEXT:
            items[part] = merged(adapted.encoder.beside, weights)
        else:
            items[part] = {**weights, "encoder": merged(adapted.encoder.lora, weights["encoder"])}
    with files.atomic_folder(out) as folder:
        target = Run(folder)
        target.create(ordinary)
        with Checkpoints(target.checkpoints) as checkpoints:
            checkpoints.save(chosen, items, {**opened.info.extra, "config": to_mapping(ordinary)},
                             opened.info.metric)
    return {"run": str(out), "step": chosen, "merged": [
        each.path for each in (*adapted.encoder.lora, *adapted.encoder.beside)]}
