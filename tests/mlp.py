"""What content adds to a row through an MLP, in f64."""

from __future__ import annotations

from typing import Any

import numpy as np


def by_definition(weights: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """f(x) of the paths `0/kernel`, `0/bias`, .. in f64."""
    values, layers = x.astype(np.float64), len(weights) // 2
    for layer in range(layers):
        values = values @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"]
        if layer < layers - 1:
            values = 0.5 * values * (1 + np.tanh(
                np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
    return np.where((x != 0).any(axis=-1, keepdims=True), values, 0.0)
