"""Encoders compute what a plain f64 program computes, and refuse what they do not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import text_models as models
from marks import slow_but
from safetensors.numpy import load_file, save_file

from rec_jax.errors import InputError
from rec_jax.text import bert, gpt2
from rec_jax.text.architecture import read_architecture
from rec_jax.text.weights import read_weights

MODULES = {"bert": bert, "gpt2": gpt2}


def computed(folder: Path, texts: list[list[int]], length: int, dtype: Any = jnp.float32,
             filler: int = 0) -> np.ndarray:
    """States `[B, L, c]` of texts that are padded to `length`."""
    about = read_architecture(folder)
    module = MODULES[about.family]
    weights = read_weights(folder, module.sources(about), module.PREFIXES)
    params = {path: jnp.asarray(array, dtype if array.ndim > 1 else jnp.float32)
              for path, array in weights.items()}
    tokens = np.full((len(texts), length), filler, np.int32)
    for row, text in enumerate(texts):
        tokens[row, :len(text)] = text
    lengths = jnp.array([len(text) for text in texts], jnp.int32)
    return np.asarray(module.encode(about, params, jnp.asarray(tokens), lengths), np.float32)


def some_texts(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, models.VOCAB, length).tolist() for length in lengths]


@pytest.mark.parametrize("backend", slow_but("native", ["native", "xla"]))
@pytest.mark.parametrize("kind", models.KINDS)
def test_states_are_those_of_a_plain_program(kind: str, backend: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REC_JAX_AUTO", backend)
    tensors = models.write_model(tmp_path, kind, seed=3)
    longest = models.PLACES - 2 * (kind == "roberta")
    texts = some_texts(5, (1, 2, 7, longest))
    found = computed(tmp_path, texts, longest)
    for row, text in enumerate(texts):
        wanted = models.states_of(kind, tensors, text)
        np.testing.assert_allclose(found[row, :len(text)], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["native", "xla"])
@pytest.mark.parametrize("kind", models.KINDS)
def test_what_stands_behind_a_text_changes_nothing(kind: str, backend: str, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REC_JAX_AUTO", backend)
    models.write_model(tmp_path, kind)
    (text,) = some_texts(1, (5,))
    alone = computed(tmp_path, [text], 5)[0]
    among = computed(tmp_path, [*some_texts(2, (16, 9)), text], 16, filler=7)[2, :5]
    np.testing.assert_allclose(among, alone, atol=2e-6, rtol=5e-6)


@pytest.mark.parametrize("kind", models.KINDS)
def test_bf16_is_close(kind: str, tmp_path: Path) -> None:
    models.write_model(tmp_path, kind)
    texts = some_texts(9, (12,) * 4)
    exact, coarse = (computed(tmp_path, texts, 12, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    # Two layers of random weights multiply a rounding of 2^-9 by some factor.
    assert 1e-4 < np.abs(coarse - exact).max() / np.abs(exact).max() < 0.05


def test_a_causal_token_does_not_see_the_next_ones(tmp_path: Path) -> None:
    models.write_model(tmp_path, "gpt2")
    first, second = some_texts(4, (8,))[0], some_texts(5, (8,))[0]
    second[:4] = first[:4]
    one, other = computed(tmp_path, [first, second], 8)
    np.testing.assert_allclose(one[:4], other[:4], atol=1e-6)
    assert np.abs(one[5:] - other[5:]).max() > 0.1


@pytest.mark.parametrize(("kind", "prefix"), [("bert", "bert."), ("roberta", "roberta."),
                                              ("gpt2", "transformer.")])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_types_and_under_a_prefix_are_read(kind: str, prefix: str, dtype: Any,
                                                            tmp_path: Path) -> None:
    tensors = models.write_model(tmp_path, kind, prefix=prefix, dtype=dtype)
    (text,) = some_texts(0, (6,))
    np.testing.assert_allclose(computed(tmp_path, [text], 6)[0],
                               models.states_of(kind, tensors, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("changes", "said"), [
    ({"model_type": "t5"}, "'t5', which is unknown here; expected one of bert"),
    ({"model_type": None}, "model_type None"),
    ({"model_type": ["bert"]}, "which is unknown here"),
    ({"hidden_act": "mish"}, "hidden_act is 'mish'; expected one of gelu"),
    ({"hidden_act": ["gelu"]}, "hidden_act is .*; expected one of gelu"),
    ({"position_embedding_type": "relative_key"}, "'relative_key', which is unknown here"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"num_attention_heads": 5}, "5 heads do not divide the width 12"),
    ({"hidden_size": "12"}, "hidden_size is '12'; expected a whole number"),
    ({"hidden_size": 2**40}, "expected a whole number"),
    ({"layer_norm_eps": 0}, "layer_norm_eps is 0; expected a number above 0"),
    ({"vocab_size": 41}, r"'embeddings.word_embeddings.weight' is F32 \[40, 12\]; expected floats "
                         r"\[41, 12\]"),
    ({"num_hidden_layers": 3}, "no tensor 'encoder.layer.2.attention.self.query.weight'"),
])
def test_a_config_that_does_not_fit_is_one_line(changes: dict[str, Any], said: str,
                                                tmp_path: Path) -> None:
    models.write_model(tmp_path, **changes)
    with pytest.raises(InputError, match=said) as caught:
        computed(tmp_path, [[1]], 4)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_gpt2_with_other_scales_of_scores_is_refused(tmp_path: Path) -> None:
    models.write_model(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx is True"):
        read_architecture(tmp_path)


def test_damaged_and_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json does not exist; expected a model folder"):
        read_architecture(tmp_path)
    models.write_model(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(InputError, match="is no JSON"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no object"):
        read_architecture(tmp_path)
    models.write_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        computed(tmp_path, [[1]], 4)
    weights.unlink()
    with pytest.raises(InputError, match="does not exist; expected the weights as safetensors"):
        computed(tmp_path, [[1]], 4)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="in several files"):
        computed(tmp_path, [[1]], 4)


def test_tensors_that_are_no_finite_floats_are_named(tmp_path: Path) -> None:
    models.write_model(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layer.1.output.dense.bias"
    save_file({**tensors, name: np.full_like(tensors[name], np.inf)}, path)
    with pytest.raises(InputError, match=f"{name}' has values that are not finite"):
        computed(tmp_path, [[1]], 4)
    save_file({**tensors, name: tensors[name].astype(np.int32)}, path)
    with pytest.raises(InputError, match=rf"{name}' is I32 \[12\]; expected floats"):
        computed(tmp_path, [[1]], 4)


def test_every_parameter_has_a_path_of_its_own(tmp_path: Path) -> None:
    for kind in models.KINDS:
        models.write_model(tmp_path, kind)
        about = read_architecture(tmp_path)
        found = MODULES[about.family].sources(about)
        tensors = [name for source in found.values() for name in source.names]
        assert len(tensors) == len(set(tensors))
        unread = sorted(set(load_file(tmp_path / "model.safetensors")) - set(tensors))
        assert unread == ([] if kind == "gpt2" else ["pooler.dense.bias", "pooler.dense.weight"])
        assert all("/" not in path or path.startswith(("blocks/", "norm/")) for path in found)
