from __future__ import annotations

import pytest

from rec_jax.errors import InputError
from rec_jax.tables import TableConfig
from rec_jax.tables.choose import choose_update, trained_by


@pytest.mark.parametrize(("num_items", "touched", "mode"), [
    (3_706, None, "dense"), (10**6, None, "streamed"), (10**9, None, "streamed"),
    (3_706, 20_000, "dense"), (10**6, 20_000, "sparse"), (10**9, 20_000, "sparse")])
def test_sizes_and_objective_choose_the_mode(num_items, touched, mode):
    choice = choose_update(TableConfig(), num_items=num_items, touched=touched)
    assert choice.mode == mode
    assert choice.reason


@pytest.mark.parametrize(("touched", "large"), [(None, "streamed"), (100, "sparse")])
def test_two_tables_are_large_where_one_is_not(touched, large):
    tied, untied = (choose_update(TableConfig(tied=tied), num_items=200_000, touched=touched)
                    for tied in (True, False))
    assert (tied.mode, untied.mode) == ("dense", large)


@pytest.mark.parametrize("touched", [None, 100])
def test_a_mode_that_is_asked_for_is_taken(touched):
    choice = choose_update(TableConfig(update="dense"), num_items=10**7, touched=touched)
    assert choice == ("dense", "table.update asks for it")


def test_sparse_refuses_the_full_softmax_and_streamed_a_sampled_one():
    with pytest.raises(InputError, match="'sparse' cannot train the full softmax"):
        choose_update(TableConfig(update="sparse"), num_items=100, touched=None)
    with pytest.raises(InputError, match="'streamed' needs the full softmax"):
        choose_update(TableConfig(update="streamed"), num_items=100, touched=5)


@pytest.mark.parametrize(("update", "touched"),
                         [("streamed", None), ("sparse", 5), ("auto", None), ("auto", 5)])
def test_clipping_by_the_whole_norm_is_refused_where_one_pass_updates_the_table(update, touched):
    with pytest.raises(InputError, match=r"optimizer\.clip needs the norm of the whole"):
        choose_update(TableConfig(update=update), num_items=10**8, touched=touched,
                      clips_global_norm=True)
    dense = choose_update(TableConfig(), num_items=1000, touched=touched, clips_global_norm=True)
    assert dense.mode == "dense"


@pytest.mark.parametrize(("num_items", "touched"), [(10**6, None), (10**6, 5)])
def test_rows_that_get_another_optimizer_by_their_number_are_told_so(num_items, touched):
    table = TableConfig()
    small, large = (choose_update(table, num_items=count, touched=touched).mode
                    for count in (1000, num_items))
    assert trained_by(table, small) == "its rows train by optimizer (adam)"
    assert trained_by(table, large) == (
        "its rows train by table.optimizer (row_adam), not by the optimizer of tables up to "
        "16,777,216 values")
    asked = TableConfig(update=large)
    assert trained_by(asked, large) == "its rows train by table.optimizer (row_adam)"
