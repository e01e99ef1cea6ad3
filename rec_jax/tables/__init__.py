"""Tables: item rows and their per-row optimizer state, sharded over the mesh axis `items`."""

from rec_jax.tables.row_optimizers import Hyper, RowOptimizer, RowOptimizerConfig, row_optimizer
from rec_jax.tables.table import Table, TableConfig, init_table, other_stream, padded_size

__all__ = ["Hyper", "RowOptimizer", "RowOptimizerConfig", "Table", "TableConfig", "init_table",
           "other_stream", "padded_size", "row_optimizer"]
