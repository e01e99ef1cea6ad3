"""One vector of many: as sentence-transformers' files say, by the formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rec_jax.errors import InputError
from rec_jax.text.pooling import Pooling, pool, read_pooling

TYPES = "sentence_transformers.models."


def write_modules(folder: Path, pooling: Any, *kinds: str) -> None:
    (folder / "modules.json").write_text(json.dumps([
        {"idx": place, "name": str(place), "type": TYPES + kind,
         "path": "" if place == 0 else f"{place}_{kind}"} for place, kind in enumerate(kinds)]))
    for place, kind in enumerate(kinds):
        (folder / f"{place}_{kind}").mkdir(exist_ok=True)
        if kind == "Pooling":
            (folder / f"{place}_{kind}" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize("how", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalise", [False, True])
def test_pooling_is_its_formula(how: Any, normalise: bool) -> None:
    random = np.random.default_rng(1)
    states = random.standard_normal((4, 6, 5)).astype(np.float32)
    lengths = np.array([1, 4, 6, 0])
    # What is behind the end of a text is not read, whatever stands there.
    for row, length in enumerate(lengths):
        states[row, length:] = np.nan
    found = np.asarray(pool(Pooling(how, normalise), jnp.asarray(states), jnp.asarray(lengths)))
    for row, length in enumerate(lengths[:3]):
        inside = states[row, :length].astype(np.float64)
        wanted = {"mean": inside.mean(axis=0), "cls": inside[0], "last": inside[-1]}[how]
        if normalise:
            wanted = wanted / np.linalg.norm(wanted)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-6)
    assert (found[3] == 0).all()


def test_the_folder_says_how(tmp_path: Path) -> None:
    assert read_pooling(tmp_path, "bert") == Pooling("mean", False)
    assert read_pooling(tmp_path, "gpt2") == Pooling("last", False)
    flags = {"word_embedding_dimension": 4, "pooling_mode_cls_token": True,
             "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False,
             "include_prompt": True}
    write_modules(tmp_path, flags, "Transformer", "Pooling", "Normalize")
    assert read_pooling(tmp_path, "bert") == Pooling("cls", True)
    assert read_pooling(tmp_path, "bert", "mean", False) == Pooling("mean", False)
    write_modules(tmp_path, {"pooling_mode": "lasttoken"}, "Transformer", "Pooling")
    assert read_pooling(tmp_path, "bert") == Pooling("last", False)
    (tmp_path / "modules.json").unlink()
    assert read_pooling(tmp_path, "bert") == Pooling("last", False)


@pytest.mark.parametrize(("pooling", "kinds", "said"), [
    ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "asks for pooling_mode_max_to"),
    ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
     ("Transformer", "Pooling"), "asks for pooling_mode_max_tokens, pooling_mode_cls_token"),
    ({}, ("Transformer", "Pooling"), "asks for no pooling"),
    ({"pooling_mode": "weightedmean"}, ("Transformer", "Pooling"), "pooling_mode 'weightedmean'"),
    ({"pooling_mode": ["mean"]}, ("Transformer", "Pooling"), "pooling_mode \\['mean'\\]"),
    ([], ("Transformer", "Pooling"), "holds no object"),
    ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), "a module 'Dense'"),
])
def test_what_is_not_known_is_refused(pooling: Any, kinds: tuple[str, ...], said: str,
                                      tmp_path: Path) -> None:
    write_modules(tmp_path, pooling, *kinds)
    with pytest.raises(InputError, match=said):
        read_pooling(tmp_path, "bert")
    assert read_pooling(tmp_path, "bert", "cls").how == "cls"


@pytest.mark.parametrize("content", ['{"a": 1}', '[1]', '[{"type": "x.Pooling"}]',
                                     '[{"type": "x.Pooling", "path": "../.."}]',
                                     '[{"type": "x.Pooling", "path": "/etc"}]'])
def test_modules_that_are_none_or_lead_elsewhere_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(InputError, match=r"modules.json"):
        read_pooling(tmp_path, "bert")


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(InputError, match="pooling is 'max'; expected one of mean, cls, last"):
        Pooling("max", False)  # type: ignore[arg-type]
