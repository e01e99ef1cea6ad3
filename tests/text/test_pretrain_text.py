"""Masked-language training: its loss and gradient, its masks, and a job that is killed."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import text_models as models
from safetensors.numpy import load_file, save_file

from rec_jax.errors import InputError
from rec_jax.model.optimizer import OptimizerConfig
from rec_jax.progress import Silent
from rec_jax.text import bert
from rec_jax.text.architecture import Architecture, read_architecture
from rec_jax.text.encoder import load_text_encoder
from rec_jax.text.folder import write_folder
from rec_jax.text.masked_batches import MaskedTexts, Vocabulary
from rec_jax.text.masked_language import masked_loss, output_sources, read_output
from rec_jax.text.weights import read_weights
from rec_jax.train.pretrain_text import PretrainTextConfig, pretrain_text, run_pretraining

needs_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None,
                                      reason="the package `tokenizers` is not installed")
MASK = models.VOCAB - 1
WORDS = Vocabulary(MASK, frozenset([0, 1, 2, 3, MASK]), models.VOCAB)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BERT of one layer whose last word hides others, without an output layer."""
    monkeypatch.setattr(models, "LAYERS", 1)
    folder = tmp_path / "model"
    models.write_model(folder, seed=4)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(f'"w{MASK - 4}"', '"[MASK]"'))
    return folder


def give_output(folder: Path) -> dict[str, np.ndarray]:
    make = models._Random(8)
    found = {**make.linear("cls.predictions.transform.dense", models.WIDTH, models.WIDTH),
             **make.norm("cls.predictions.transform.LayerNorm"),
             "cls.predictions.bias": make(models.VOCAB)}
    old = load_file(folder / "model.safetensors")
    save_file({**{f"bert.{name}": tensor for name, tensor in old.items()},
               **{name: tensor.astype(np.float32) for name, tensor in found.items()}},
              folder / "model.safetensors")
    return found


def plain_loss(t: dict[str, np.ndarray], batch: Any) -> float:
    """In f64, a text at a time."""
    total = 0.0
    length = batch.tokens.shape[1]
    for place, target, weight in zip(batch.where, batch.targets, batch.weights, strict=True):
        row, at = divmod(int(place), length)
        ids = batch.tokens[row, :batch.lengths[row]].tolist()
        if not weight:
            continue
        h = models.states_of("bert", t, ids)[at:at + 1]
        g = models._linear(t, "cls.predictions.transform.dense", h)
        g = np.vectorize(lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))))(g)
        g = models._norm(t, "cls.predictions.transform.LayerNorm", g, 1e-12)[0]
        scores = t["embeddings.word_embeddings.weight"] @ g + t["cls.predictions.bias"]
        total += float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target])
    return total


def test_loss_and_gradient_are_those_of_a_plain_program(model: Path) -> None:
    output = give_output(model)
    random = np.random.default_rng(5)
    texts = [[2, *random.integers(4, MASK, count).tolist(), 3] for count in (9, 4, 10)]
    batch = MaskedTexts(texts, WORDS, 4, models.PLACES, seed=1).at(0)
    assert batch.tokens.shape == (4, 12) and batch.weights.sum() >= 3
    about = read_architecture(model)
    found, kind, had = read_output(model, about)
    assert (kind, had) == ("bert", True)
    params = {**read_weights(model, bert.sources(about), bert.PREFIXES), **found}
    (total, count), gradient = jax.jit(jax.value_and_grad(
        lambda p: masked_loss(about, p, batch._asdict(), backend="xla"), has_aux=True))(params)
    assert float(count) == batch.weights.sum()
    stored = load_file(model / "model.safetensors")
    t = {name.removeprefix("bert."): tensor.astype(np.float64) for name, tensor in stored.items()}
    t |= {name: tensor.astype(np.float32).astype(np.float64) for name, tensor in output.items()}
    np.testing.assert_allclose(float(total), plain_loss(t, batch), rtol=1e-5)
    sources = {**bert.sources(about), **output_sources(about)}
    for path in ("words", "positions", "blocks/0/qkv/kernel", "blocks/0/down/bias",
                 "output/transform/kernel", "output/norm/scale", "output/bias"):
        # Along a random direction of the parameter, by central differences in f64.
        way = random.standard_normal(params[path].shape)
        source = sources[path]
        sides = []
        for sign in (1, -1):
            moved = dict(t)
            for name, part in zip(source.names, np.split(way, len(source.names), -1), strict=True):
                moved[name] = t[name] + sign * 1e-5 * (part.T if source.transposed else part)
            sides.append(plain_loss(moved, batch))
        wanted = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(float((gradient[path] * way).sum()), wanted, rtol=1e-3,
                                   atol=1e-3, err_msg=path)


def test_masks_are_of_the_shares_and_a_function_of_the_step() -> None:
    random = np.random.default_rng(0)
    texts = [[2, *random.integers(4, MASK, count).tolist(), 3] for count in
             random.integers(20, 22, 800)]
    batches = MaskedTexts(texts, WORDS, 100, models.PLACES, seed=3)
    assert batches.batches == 8
    said, words = np.zeros(4), 0
    for step in range(8, 16):
        batch = batches.at(step)
        chosen = batch.weights > 0
        flat = batch.tokens.ravel()
        assert len(set(batch.where[chosen])) == chosen.sum()
        assert set(batch.targets[chosen]).isdisjoint(WORDS.special)
        now, then = flat[batch.where[chosen]], batch.targets[chosen]
        assert set(now) <= set(range(4, models.VOCAB))
        words += int((batch.lengths - 2).sum())
        said += [len(now), (now == MASK).sum(), (now == then).sum(),
                 ((now != then) & (now != MASK)).sum()]
    for share, wanted in zip((said[0] / words, *said[1:] / said[0]), (.15, .8, .1, .1),
                             strict=True):
        assert abs(share - wanted) < 0.02  # a random word is the same in 1 of 35 cases
    again = MaskedTexts(texts, WORDS, 100, models.PLACES, seed=3).at(11)
    for one, other in zip(batches.at(11), again, strict=True):
        np.testing.assert_array_equal(one, other)
    # Every text once an epoch, and in the next one masked in another way.
    seen = np.concatenate([batches.at(step).lengths for step in range(8)])
    assert (seen > 0).sum() == 800
    assert any((batches.at(step).where[:50] != batches.at(step + 8).where[:50]).any()
               for step in range(8))


class Killed(BaseException):
    pass


class Told(Silent):
    """Keeps what is said, and ends a job after some steps, as a signal would."""

    def __init__(self, steps: int = 10**6) -> None:
        self.left, self.lines = steps, []  # type: ignore[var-annotated]

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise Killed

    def say(self, text: str) -> None:
        self.lines.append(text)


def write_texts(folder: Path) -> Path:
    """Texts of six words, of which the model knows more; one of them stands there twice."""
    random = np.random.default_rng(1)
    rows = [" ".join(f"w{word}" for word in random.integers(0, 6, 8)) for _ in range(48)]
    (folder / "t.csv").write_text("\n".join(["name", *rows, rows[0]]) + "\n")
    return folder / "t.csv"


@needs_tokenizers
@pytest.mark.slow
def test_a_job_learns_and_a_killed_one_goes_on_to_the_same_bits(
        model: Path, tmp_path: Path) -> None:
    texts = str(write_texts(tmp_path))
    given: dict[str, Any] = {"table": texts, "columns": ("name",), "rows": 16, "steps": 30,
                             "held_out": 0.1, "save_every": 7}

    def config(out: str, **more: Any) -> PretrainTextConfig:
        return PretrainTextConfig(str(model), str(tmp_path / out), **{
            "optimizer": OptimizerConfig(rate=2e-2, warmup=3), **given, **more})

    told = Told()
    made = run_pretraining(config("whole"), told)
    assert "has no output layer for hidden tokens; a new one is trained" in told.lines[0]
    assert made["perplexity_after"] < 0.7 * made["perplexity_before"]
    assert made["texts"] == {"trained": 43, "held_out": 5}
    with pytest.raises(Killed):
        run_pretraining(config("killed"), Told(17))
    assert not (tmp_path / "killed").exists()
    with pytest.raises(InputError, match="is of another job; remove it"):
        run_pretraining(config("killed", seed=1))
    again = run_pretraining(config("killed"))
    assert {**again, "folder": 0, "seconds": 0} == {**made, "folder": 0, "seconds": 0}
    one, other = ((tmp_path / name / "model.safetensors").read_bytes()
                  for name in ("whole", "killed"))
    assert one == other
    assert not list(tmp_path.glob(".*.unfinished"))
    # A folder as before: read by `embed`, with what nobody trains as it was.
    old, new = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "whole"))
    assert old.keys() | set(output_names()) == new.keys()
    np.testing.assert_array_equal(old["pooler.dense.weight"], new["pooler.dense.weight"])
    name = "encoder.layer.0.attention.self.value.weight"
    assert np.abs(old[name] - new[name]).max() > 1e-3
    states = models.states_of("bert", {key: value.astype(np.float64)
                                       for key, value in new.items()},
                              models.tokens_of("bert", "w3 w4"))
    np.testing.assert_allclose(load_text_encoder(tmp_path / "whole").embed(["w3 w4"])[0],
                               states.mean(axis=0), atol=1e-5)
    assert read_output(tmp_path / "whole", read_architecture(model))[2]
    about = json.loads((tmp_path / "whole" / "rec_jax.json").read_text())
    assert about["output_layer"] == "new" and about["steps"] == 30
    with pytest.raises(InputError, match="whole exists already"):
        pretrain_text(model, out=tmp_path / "whole", **given)


def test_tensors_that_a_file_holds_twice_stay_equal_where_they_were(model: Path, tmp_path: Path
                                                                   ) -> None:
    give_output(model)
    stored = load_file(model / "model.safetensors")
    words = "bert.embeddings.word_embeddings.weight"
    stored |= {"cls.predictions.decoder.weight": stored[words].copy(),
               "cls.predictions.decoder.bias": stored["cls.predictions.bias"] + 1}
    save_file(stored, model / "model.safetensors")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"old weights")
    changed = {"embeddings.word_embeddings.weight": np.ones((models.VOCAB, models.WIDTH), "f4"),
               "cls.predictions.bias": np.ones(models.VOCAB, "f4")}
    write_folder(tmp_path / "out", model, changed, bert.PREFIXES, next(iter(changed)), {"a": 1})
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == stored.keys() and (found[words] == 1).all()
    assert (found["cls.predictions.decoder.weight"] == 1).all()
    np.testing.assert_array_equal(found["cls.predictions.decoder.bias"],
                                  stored["cls.predictions.decoder.bias"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "tokenizer.json", "model.safetensors", "rec_jax.json", "1_Pooling"}


def output_names() -> list[str]:
    found = output_sources(read_architecture_of_tests())
    return [name for source in found.values() for name in source.names]


def read_architecture_of_tests() -> Architecture:
    return Architecture("bert", 1, 3, models.WIDTH, models.HIDDEN, models.VOCAB, models.PLACES, 0,
                        2, "gelu", 1e-12)


@needs_tokenizers
@pytest.mark.slow
def test_with_lora_the_matrices_of_the_blocks_move_alone(model: Path, tmp_path: Path) -> None:
    give_output(model)
    made = pretrain_text(model, out=tmp_path / "out", table=str(write_texts(tmp_path)),
                         columns=("name",), rows=16, steps=5, lora=2)
    assert made["output_layer"] == "of the model"
    old, new = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert old.keys() == new.keys()
    assert {name for name in moved if not name.startswith("cls.")} == {
        f"bert.encoder.layer.0.{part}.weight" for part in (
            "attention.self.query", "attention.self.key", "attention.self.value",
            "attention.output.dense", "intermediate.dense", "output.dense")}


@needs_tokenizers
def test_what_cannot_be_trained_is_one_line(model: Path, tmp_path: Path) -> None:
    texts = str(write_texts(tmp_path))
    for given, said in (({}, "expected one of them"),
                        ({"table": texts}, "that holds text"),
                        ({"table": texts, "columns": ("x",)}, "no column 'x'"),
                        ({"table": texts, "columns": ("name",), "held_out": 1.0}, "held_out")):
        with pytest.raises(InputError, match=said):
            pretrain_text(model, out=tmp_path / "o", **given)
    models.write_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(InputError, match="which has no hidden tokens"):
        pretrain_text(tmp_path / "gpt2", out=tmp_path / "o", table=texts, columns=("name",))
    assert not (tmp_path / "o").exists()
