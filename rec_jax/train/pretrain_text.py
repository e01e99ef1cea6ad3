"""Masked-language training of a text encoder on a domain's own texts.

    texts -> tokens, each text once -> held out by seed, the rest in epochs -> a folder as before

A job that was killed goes on from its newest checkpoint, in `.NAME.unfinished` beside the folder
that it makes, to the bits that it would have had. It runs on one device.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rec_jax import jsons, locks
from rec_jax.checkpoint import Checkpoints
from rec_jax.data.dataset import Dataset
from rec_jax.errors import InputError, Preempted
from rec_jax.kernels.auto import pinned
from rec_jax.model.lora import Adapted, LoraConfig, find_adapted, init_lora, merged
from rec_jax.model.optimizer import OptimizerConfig, dense_optimizer
from rec_jax.progress import Reporter, Silent, reporter_of
from rec_jax.ranges import above, at_least, below, check
from rec_jax.text import bert
from rec_jax.text.architecture import Architecture, read_architecture
from rec_jax.text.encoder import model_hash
from rec_jax.text.folder import check_out, tensors_of, write_folder
from rec_jax.text.item_texts import table_texts, texts_of
from rec_jax.text.masked_batches import MaskedTexts, Vocabulary
from rec_jax.text.masked_language import masked_loss, output_sources, read_output
from rec_jax.text.tokens import Tokens, read_longest
from rec_jax.text.weights import read_weights
from rec_jax.train import backends
from rec_jax.train.preemption import Preemption

Params = dict[str, Any]
MATRICES = "blocks/*/kernel"
"""What LoRA adapts: the matrices of all blocks."""
_OPTIMIZER: dict[str, Any] = {"schedule": "cosine", "weight_decay": 0.01, "clip": 1.0}


@dataclass(frozen=True)
class PretrainTextConfig:
    """One job.

    model: folder of a BERT, RoBERTa or one of their relatives. out: the new folder.
    dataset: whose titles and text are read, or the `columns` of `table` joined to it by `id`, see
      `item_texts.texts_of`; None: every row of `table`.
    rows: texts of a batch; epochs, or steps in its place: how long.
    lora: rank of the products that train beside the blocks' matrices, which they become a part of
      in the end; None: all parameters train.
    held_out: share of the texts that measures; max_length: tokens of a text.
    save_every: steps between two checkpoints.
    """

    model: str
    out: str
    dataset: str | None = None
    table: str | None = None
    id: str = "item_id"
    columns: tuple[str, ...] = ()
    rows: int = 32
    epochs: float = 3.0
    steps: int | None = None
    lora: int | None = None
    held_out: float = 0.05
    max_length: int | None = None
    save_every: int = 500
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(
        rate=1e-4, warmup=50, **_OPTIMIZER))
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "", rows=at_least(1, 2**16), epochs=above(0), steps=at_least(1),
              lora=at_least(1, 2**12), held_out=below(0, 1), max_length=at_least(2),
              save_every=at_least(1), seed=at_least(0, 2**32 - 1))
        if self.dataset is None and self.table is None:
            raise InputError("texts come from a dataset or a table; expected one of them")


class _Job(NamedTuple):
    """parameters: by path, with the thin products; held: of these the ones that do not train, where
    there are such products; kind: of the names of the output layer; had_output: the folder had
    one."""

    about: Architecture
    parameters: Params
    held: frozenset[str]
    adapted: tuple[Adapted, ...]
    train: MaskedTexts
    valid: MaskedTexts
    counts: Mapping[str, int]
    kind: str
    had_output: bool
    identity: Mapping[str, Any]


def pretrain_text(model: Path | str, *, out: Path | str, dataset: Path | str | None = None,
                  rate: float = 1e-4, warmup: int = 50, progress: bool = False,
                  **settings: Any) -> dict[str, Any]:
    """Train a text encoder on the texts of a dataset or a table; see `PretrainTextConfig` for
    `settings`. The learning rate warms up to `rate`, and follows a cosine to a tenth of it.

    Returns what `rec_jax.json` of the new folder says: perplexity of held-out texts before and
    after, counts, steps.

    Raises:
      InputError: model, texts or settings are not as they should be, or `out` exists.
    """
    config = PretrainTextConfig(str(model), str(out), None if dataset is None else str(dataset),
                                optimizer=OptimizerConfig(rate=rate, warmup=warmup, **_OPTIMIZER),
                                **settings)
    with reporter_of("pretrain-text", progress) as reporter:
        return run_pretraining(config, reporter)


def run_pretraining(config: PretrainTextConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """See `pretrain_text`."""
    reporter, began, out = reporter or Silent(), time.perf_counter(), Path(config.out)
    check_out(out)
    job = _prepare(config, reporter)
    kept = out.with_name(f".{out.name}.unfinished")
    with locks.locked(kept):
        steps, found = _train(config, job, kept, reporter)
        params = merged(job.adapted, found.pop("params"))
        found = {"model": Path(config.model).resolve().name, "texts": dict(job.counts),
                 "output_layer": "of the model" if job.had_output else "new",
                 "steps": steps, "lora": config.lora, **found,
                 "settings": {name: value for name, value in asdict(config).items()
                              if name not in ("model", "out", "dataset", "table")}}
        _write(config, job, params, found)
    shutil.rmtree(kept, ignore_errors=True)
    return {"folder": str(out), "seconds": round(time.perf_counter() - began, 3), **found}


def _prepare(config: PretrainTextConfig, reporter: Reporter) -> _Job:
    folder = Path(config.model)
    about = read_architecture(folder)
    output, kind, had = read_output(folder, about)
    if not had:
        reporter.say(f"{folder} has no output layer for hidden tokens; a new one is trained, and "
                     "the rows of the words are its classes")
    weights = read_weights(folder, bert.sources(about), bert.PREFIXES)
    longest = read_longest(folder, about, config.max_length)
    tokens = Tokens(folder, longest)
    if tokens.mask is None or tokens.most > about.tokens:
        raise InputError(f"{folder}/tokenizer.json has no token that hides another one, or more "
                         "tokens than config.json; expected [MASK] or <mask>")
    words = Vocabulary(tokens.mask, tokens.special | {tokens.mask}, tokens.most)
    texts = list(dict.fromkeys(text for block in _texts(config) for text in block if text))
    known = [ids for ids in tokens(texts) if set(ids) - words.special]
    random = np.random.default_rng((config.seed, 2))
    order = random.permutation(len(known))
    apart = max(1, round(config.held_out * len(known))) if len(known) > 1 else 0
    if not apart:
        raise InputError(f"{len(known)} texts have a word that the model knows; expected two at "
                         "least, one to train on and one to measure by")
    held, rest = order[:apart], order[apart:]

    def masked(part: np.ndarray, seed: int) -> MaskedTexts:
        return MaskedTexts([known[each] for each in part], words, config.rows, longest, seed)

    parameters: Params = {**weights, **output}
    shapes = {path: array.shape for path, array in weights.items()}
    adapted = () if config.lora is None else find_adapted(
        [LoraConfig(MATRICES, config.lora, 2.0 * config.lora)], shapes)
    still = frozenset(() if config.lora is None else weights)
    parameters |= init_lora(adapted, shapes, config.seed)
    identity = json.loads(jsons.dumps({
        "model": model_hash(folder), "texts": _hash_of(known), "config": {
            name: value for name, value in asdict(config).items()
            if name not in ("model", "out", "dataset", "table", "save_every")}}))
    return _Job(about, parameters, still, adapted,
                masked(rest, config.seed), masked(held, config.seed),
                {"trained": len(rest), "held_out": apart}, kind, had, identity)


def _hash_of(texts: list[list[int]]) -> str:
    """Hex sha256 of token ids."""
    digest = hashlib.sha256()
    for ids in texts:
        digest.update(np.array([len(ids), *ids], "<i4").tobytes())
    return digest.hexdigest()


def _texts(config: PretrainTextConfig) -> Iterator[list[str]]:
    if config.dataset is None:
        assert config.table is not None
        return iter([table_texts(config.table, config.columns)])
    return texts_of(Dataset.open(config.dataset), config.table, config.id, config.columns).blocks()


def _train(config: PretrainTextConfig, job: _Job, kept: Path, reporter: Reporter
           ) -> tuple[int, dict[str, Any]]:
    """Steps done, and the parameters with what was measured."""
    total = config.steps or max(1, round(config.epochs * job.train.batches))
    optimizer = _optimizer(config.optimizer, total)
    params = {path: jnp.asarray(array) for path, array in job.parameters.items()}
    held = {path: leaf for path, leaf in params.items() if path in job.held}
    # A copy, since a step gives its buffers away.
    moving = {path: jnp.array(leaf) for path, leaf in params.items() if path not in held}
    state: dict[str, Any] = {"params": moving, "optimizer": optimizer.init({"encoder": moving})}
    step, of_batch = _functions(job.about, job.adapted, optimizer)
    with Preemption() as preemption, Checkpoints(kept / "checkpoints", keep=1) as checkpoints:
        if (there := checkpoints.latest()) is not None and checkpoints.extra(there).get(
                "job") != job.identity:
            raise InputError(f"{kept} is of another job; remove it, or choose another folder")
        found = checkpoints.newest(lambda at: (
            checkpoints.open(at).restore({"state": state})["state"], checkpoints.extra(at)))
        done, before, chosen = 0, None, None
        if found is not None:
            done, (state, extra) = found
            before, chosen = extra["before"], extra["backends"]
        chosen = backends.agree(chosen, reporter)
        reporter.begin(total, done)
        with pinned(chosen):
            if before is None:
                before = _perplexity(of_batch, state["params"], held, job.valid)
                reporter.say(f"before: perplexity {before:.3f} of hidden tokens in "
                             f"{job.counts['held_out']} held-out texts")
            while done < total:
                state, loss = step(state, held, job.train.at(done)._asdict())
                done += 1
                asked = preemption.asked(done)
                if asked or (done % config.save_every == 0 and done < total):
                    checkpoints.save(done, {"state": state}, {
                        "job": job.identity, "before": before, "backends": chosen})
                if asked:
                    checkpoints.wait()
                    raise Preempted(f"{asked}: stopped after step {done}, which is saved; the same "
                                    "command goes on")
                reporter.advance(1, f"loss {float(loss):.4f}" if done % 10 == 0 else "")
            after = _perplexity(of_batch, state["params"], held, job.valid)
    reporter.say(f"after {done} steps: perplexity {after:.3f}")
    return done, {"params": {**held, **state["params"]}, "perplexity_before": round(before, 4),
                  "perplexity_after": round(after, 4)}


@functools.lru_cache(4)
def _functions(about: Architecture, adapted: tuple[Adapted, ...],
               optimizer: optax.GradientTransformation) -> tuple[Any, Any]:
    """An update of the state by one batch, and the loss of one."""
    def loss(moving: Params, held: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        total, count = masked_loss(about, merged(adapted, {**held, **moving}), batch)
        return total / jnp.maximum(count, 1.0), count

    def update(state: Any, held: Params, batch: Any) -> tuple[Any, jax.Array]:
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
            state["params"], held, batch)
        tree = {"encoder": state["params"]}
        updates, kept = optimizer.update({"encoder": gradient}, state["optimizer"], tree)
        moved = optax.apply_updates(tree, updates)
        return {"params": moved["encoder"], "optimizer": kept}, value  # type: ignore[index]

    return jax.jit(update, donate_argnums=0), jax.jit(loss)


@functools.lru_cache(4)
def _optimizer(config: OptimizerConfig, total: int) -> optax.GradientTransformation:
    return dense_optimizer(config, total)


def _perplexity(of_batch: Any, moving: Params, held: Params, texts: MaskedTexts) -> float:
    """exp of the mean loss of hidden tokens; they are the same ones whenever it is asked."""
    total = count = 0.0
    for number in range(texts.batches):
        mean, tokens = of_batch(moving, held, texts.at(number)._asdict())
        total, count = total + float(mean) * float(tokens), count + float(tokens)
    return float(np.exp(total / count))


def _write(config: PretrainTextConfig, job: _Job, params: Params, about: dict[str, Any]) -> None:
    sources = {**bert.sources(job.about), **output_sources(job.about, job.kind)}
    tensors = tensors_of(params, sources)
    for path, array in params.items():
        if not np.isfinite(np.asarray(array)).all():
            raise InputError(f"parameter {path} has values that are not finite; expected a smaller "
                             "optimizer.rate")
    write_folder(Path(config.out), Path(config.model), tensors, bert.PREFIXES,
                 next(iter(bert.sources(job.about).values())).names[0], about)
