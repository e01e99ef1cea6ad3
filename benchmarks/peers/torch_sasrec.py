"""The model of run_torch.py (Kang & McAuley, 2018), with today's pre-norm blocks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Causal attention and feed-forward, each on a normalised input and added to the stream."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, L, d] -> [B, L, d]."""
        batch, length, dim = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, h, L, d/h]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = self.project(mixed.transpose(1, 2).reshape(batch, length, dim))
        x = x + F.dropout(mixed, self.rate, self.training)
        return x + F.dropout(self.mlp(self.norm_mlp(x)), self.rate, self.training)


class SASRec(nn.Module):
    """Queries [B, L, d] for histories [B, L] that begin at place 0; padding comes after them.

    What follows a history cannot be seen from inside it, so no padding mask is needed.
    """

    def __init__(self, num_items: int, length: int, dim: int, layers: int, heads: int,
                 dropout: float) -> None:
        super().__init__()
        self.rate = dropout
        self.rows, self.places = nn.Embedding(num_items, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList([Block(dim, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)
        for table in (self.rows, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """items int64 [B, L] -> queries [B, L, d]."""
        x = self.rows(items) + self.places.weight
        x = F.dropout(x, self.rate, self.training)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
