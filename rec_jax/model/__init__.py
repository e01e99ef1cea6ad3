"""Item vectors `[B, L, d]` to queries `[B, L, d]`, and what an item vector is made of."""
