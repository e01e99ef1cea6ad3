"""Tables: item rows and their per-row optimizer state, sharded over a mesh."""

from rec_jax.tables.row_map import RowMap
from rec_jax.tables.row_optimizers import Hyper, RowOptimizer, RowOptimizerConfig, row_optimizer
from rec_jax.tables.table import (
    INPUTS,
    ITEMS,
    USERS,
    Table,
    TableConfig,
    init_table,
    padded_size,
    rows_over,
    table_stream,
)

__all__ = ["INPUTS", "ITEMS", "USERS", "Hyper", "RowMap", "RowOptimizer", "RowOptimizerConfig",
           "Table", "TableConfig", "init_table", "padded_size", "row_optimizer", "rows_over",
           "table_stream"]
