"""The loss of hidden tokens: BERT's output layer and the exact softmax over its vocabulary.

    g = LN(f(h W + b)),    loss = lse_v(g . e_v + c_v) - (g . e_y + c_y)

h is the state of a hidden token y, e_v the row of word v in the table that the encoder reads
(tied), c_v a bias. The softmax is `rec_jax.kernels.softmax_loss`, so no array of tokens x words
exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.errors import InputError
from rec_jax.kernels import softmax_loss
from rec_jax.text import bert
from rec_jax.text.architecture import Architecture
from rec_jax.text.layers import Params, activate, dense, layer_norm
from rec_jax.text.weights import Source, Weights, has_tensors, read_weights

OUTPUT = "output/"
"""Before the paths of the output layer's parameters."""
_NAMES = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
             "cls.predictions.bias"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")}


def output_sources(about: Architecture, kind: str = "bert") -> dict[str, Source]:
    """Parameters of the output layer, and the tensors that they are made of."""
    layer, norm, bias = _NAMES[kind]
    width = about.width
    return {f"{OUTPUT}transform/kernel": Source((f"{layer}.weight",), (width, width), True),
            f"{OUTPUT}transform/bias": Source((f"{layer}.bias",), (width,)),
            f"{OUTPUT}norm/scale": Source((f"{norm}.weight",), (width,)),
            f"{OUTPUT}norm/bias": Source((f"{norm}.bias",), (width,)),
            f"{OUTPUT}bias": Source((bias,), (about.tokens,))}


def read_output(folder: Path, about: Architecture) -> tuple[Weights, str, bool]:
    """The output layer of a folder, the kind of its names, and whether the folder has one.

    One without gets a layer that changes little: W is the identity, biases are 0.

    Raises:
      InputError: the model has no hidden tokens (GPT-2).
    """
    if about.family != "bert":
        raise InputError(f"{folder} is a {about.family} model, which has no hidden tokens; "
                         "expected BERT, RoBERTa or one of their relatives")
    for kind in _NAMES:
        sources = output_sources(about, kind)
        names = {name for source in sources.values() for name in source.names}
        if has_tensors(folder, names):
            return read_weights(folder, sources, ("",)), kind, True
    kind = "roberta" if about.first_position else "bert"
    fresh = {path: np.zeros(source.shape, np.float32)
             for path, source in output_sources(about, kind).items()}
    fresh[f"{OUTPUT}transform/kernel"] = np.eye(about.width, dtype=np.float32)
    fresh[f"{OUTPUT}norm/scale"] += 1
    return fresh, kind, False


def masked_loss(about: Architecture, params: Params, batch: Mapping[str, jax.Array], *,
                backend: str = "auto") -> tuple[jax.Array, jax.Array]:
    """Sum of the losses of a batch's hidden tokens, and their number; f32.

    batch: the arrays of `masked_batches.MaskedBatch` by name.
    """
    states = bert.encode(about, params, batch["tokens"], batch["lengths"])
    hidden = states.reshape(-1, about.width)[batch["where"]]
    given = activate(about.activation, dense(params, f"{OUTPUT}transform", hidden))
    given = layer_norm(params, f"{OUTPUT}norm", given, about.epsilon)
    loss, _ = softmax_loss(given, params["words"], batch["targets"], bias=params[f"{OUTPUT}bias"],
                           backend=backend)
    weights = batch["weights"]
    return jnp.sum(jnp.where(weights > 0, loss * weights, 0.0)), jnp.sum(weights)
