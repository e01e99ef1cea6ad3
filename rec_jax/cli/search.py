"""`rec-jax search`: the items of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from rec_jax.cli import summary
from rec_jax.cli.options import App
from rec_jax.cli.show import say
from rec_jax.cli.types import (
    Data,
    Json,
    Lexical,
    Step,
    TextColumns,
    TextId,
    TextTable,
    TextVectors,
    Trust,
)

app = App()


@app.command()
def search(
    run: Annotated[str, typer.Argument(
        metavar="RUN", help="Run folder, or a dataset where no user is given.")],
    text: Annotated[str, typer.Option(help="What is looked for.")],
    model: Annotated[str | None, typer.Option(
        metavar="FOLDER", help="Text encoder that made the item vectors; without it words "
                               "decide.")] = None,
    user: Annotated[str | None, typer.Option(
        help="A user of the dataset, whose taste counts too.")] = None,
    history: Annotated[list[str] | None, typer.Option(
        metavar="ID", help="Instead of a user: item ids, oldest first.")] = None,
    blend: Annotated[float, typer.Option(
        help="The share of the user or the history in the score, 0 to 1.")] = 0.5,
    k: Annotated[int, typer.Option("--k", "-k", help="How many items.")] = 10,
    space: Annotated[str, typer.Option(
        help="text: compare with the vectors of the items' texts; items: with the run's vectors of "
             "the items, where the matrix of its [[content]] leads.")] = "text",
    name: TextVectors = None,
    prefix: Annotated[str | None, typer.Option(
        help="Stands before the query, where the model was trained so.")] = None,
    table: TextTable = None,
    id: TextId = "item_id",
    columns: TextColumns = None,
    lexical: Lexical = None,
    learned: Annotated[str | None, typer.Option(
        metavar="FILE", help="What clicks taught, from `rec-jax learn-search`; it says the space "
                             "and the item vectors.")] = None,
    step: Step = None,
    data: Data = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Find items by a text. A text encoder and the words of the items decide, all items compete."""
    from rec_jax import compilation_cache, lookup

    compilation_cache.enable()
    summary.recommendations(lookup.search(
        run, text, model=model, user=user, history=history, blend=blend, k=k, space=space,
        name=name, prefix=prefix, table=table, id=id, columns=columns or (), lexical=lexical,
        learned=learned, tell=say, step=step, data=data, trust_code=trust_code), as_json)
