"""Tiny models as Hugging Face writes them, and what they compute, in plain numpy and f64.

The formulas here are written from the papers' definitions, a text at a time and without padding;
nothing of `rec_jax.text` is used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, HIDDEN, LAYERS, VOCAB, PLACES = 12, 3, 20, 2, 40, 24
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(VOCAB - 4))]
KINDS = ("bert", "roberta", "gpt2")
Tensors = dict[str, np.ndarray]


def write_model(folder: Path, kind: str = "bert", *, seed: int = 0, prefix: str = "",
                dtype: Any = np.float32, **changes: Any) -> Tensors:
    """Write a model of `kind` with random weights into `folder`; gives its tensors, f64."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = gpt2_tensors(seed) if kind == "gpt2" else bert_tensors(seed)
    stored = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file({prefix + name: tensor for name, tensor in stored.items()},
              folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config_of(kind), **changes}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_of(kind)))
    return {name: tensor.astype(np.float64) for name, tensor in stored.items()}


def config_of(kind: str) -> dict[str, Any]:
    if kind == "gpt2":
        return {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
                "n_inner": None, "n_positions": PLACES, "vocab_size": VOCAB,
                "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    return {"model_type": kind, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "intermediate_size": HIDDEN, "vocab_size": VOCAB,
            "max_position_embeddings": PLACES, "type_vocab_size": 2, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "pad_token_id": 1 if kind == "roberta" else 0}


def tokenizer_of(kind: str) -> dict[str, Any]:
    """Words between spaces; BERT's have [CLS] and [SEP] around them. It pads and cuts, which is to
    be undone."""
    around = None if kind == "gpt2" else {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                           "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}}
    return {"version": "1.0",
            "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0,
                           "direction": "Right"},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": around,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {word: place for place, word in
                                                     enumerate(WORDS)}, "unk_token": "[UNK]"}}


def tokens_of(kind: str, text: str, most: int = PLACES) -> list[int]:
    """The ids of a text, without the library."""
    known = {word: place for place, word in enumerate(WORDS)}
    ids = [known.get(word, 1) for word in text.split()]
    return ids[:most] if kind == "gpt2" else [2, *ids[:most - 2], 3]


def bert_tensors(seed: int) -> Tensors:
    make = _Random(seed)
    found = {f"embeddings.{name}_embeddings.weight": make(rows, WIDTH) for name, rows in
             (("word", VOCAB), ("position", PLACES), ("token_type", 2))}
    found |= make.norm("embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        for name in ("query", "key", "value"):
            found |= make.linear(f"{layer}.attention.self.{name}", WIDTH, WIDTH)
        found |= make.linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        found |= make.norm(f"{layer}.attention.output.LayerNorm")
        found |= make.linear(f"{layer}.intermediate.dense", HIDDEN, WIDTH)
        found |= make.linear(f"{layer}.output.dense", WIDTH, HIDDEN)
        found |= make.norm(f"{layer}.output.LayerNorm")
    # What nobody reads.
    return found | make.linear("pooler.dense", WIDTH, WIDTH)


def gpt2_tensors(seed: int) -> Tensors:
    make = _Random(seed)
    found = {"wte.weight": make(VOCAB, WIDTH), "wpe.weight": make(PLACES, WIDTH)}
    for number in range(LAYERS):
        layer = f"h.{number}"
        found |= make.norm(f"{layer}.ln_1") | make.norm(f"{layer}.ln_2")
        # GPT-2's matrices are [in, out].
        for name, rows, columns in (("attn.c_attn", WIDTH, 3 * WIDTH),
                                    ("attn.c_proj", WIDTH, WIDTH),
                                    ("mlp.c_fc", WIDTH, 4 * WIDTH),
                                    ("mlp.c_proj", 4 * WIDTH, WIDTH)):
            found |= {f"{layer}.{name}.weight": make(rows, columns),
                      f"{layer}.{name}.bias": make(columns)}
    return found | make.norm("ln_f")


class _Random:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        return 0.5 * self.random.standard_normal(shape)

    def linear(self, name: str, rows: int, columns: int) -> Tensors:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}

    def norm(self, name: str) -> Tensors:
        return {f"{name}.weight": 1 + self(WIDTH), f"{name}.bias": self(WIDTH)}


def states_of(kind: str, tensors: Tensors, ids: list[int]) -> np.ndarray:
    """States f64 `[n, c]` of one text."""
    return _gpt2(tensors, ids) if kind == "gpt2" else _bert(tensors, ids, 2 * (kind == "roberta"))


def _bert(t: Tensors, ids: list[int], first: int) -> np.ndarray:
    x = np.stack([t["embeddings.word_embeddings.weight"][token]
                  + t["embeddings.position_embeddings.weight"][first + place]
                  + t["embeddings.token_type_embeddings.weight"][0]
                  for place, token in enumerate(ids)])
    x = _norm(t, "embeddings.LayerNorm", x, 1e-12)
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        q, k, v = (_linear(t, f"{layer}.attention.self.{name}", x)
                   for name in ("query", "key", "value"))
        mixed = _linear(t, f"{layer}.attention.output.dense", _attention(q, k, v, causal=False))
        x = _norm(t, f"{layer}.attention.output.LayerNorm", x + mixed, 1e-12)
        hidden = _linear(t, f"{layer}.intermediate.dense", x)
        hidden = np.vectorize(lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))))(hidden)
        x = _norm(t, f"{layer}.output.LayerNorm",
                  x + _linear(t, f"{layer}.output.dense", hidden), 1e-12)
    return x


def _gpt2(t: Tensors, ids: list[int]) -> np.ndarray:
    x = t["wte.weight"][ids] + t["wpe.weight"][:len(ids)]
    for number in range(LAYERS):
        layer = f"h.{number}"

        def conv(name: str, given: np.ndarray, layer: str = layer) -> np.ndarray:
            return given @ t[f"{layer}.{name}.weight"] + t[f"{layer}.{name}.bias"]

        q, k, v = np.split(conv("attn.c_attn", _norm(t, f"{layer}.ln_1", x, 1e-5)), 3, axis=1)
        x = x + conv("attn.c_proj", _attention(q, k, v, causal=True))
        hidden = conv("mlp.c_fc", _norm(t, f"{layer}.ln_2", x, 1e-5))
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + conv("mlp.c_proj", hidden)
    return _norm(t, "ln_f", x, 1e-5)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, causal: bool) -> np.ndarray:
    out, size = np.zeros_like(q), WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for query in range(len(q)):
            seen = query + 1 if causal else len(q)
            scores = k[:seen, part] @ q[query, part] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[query, part] = (weights / weights.sum()) @ v[:seen, part]
    return out


def _linear(t: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def _norm(t: Tensors, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]
