"""`rec-jax learn-search`: what clicks after texts teach a search."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import number, print_facts, print_json, say
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


@app.command("learn-search")
def learn_search(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or a dataset.")],
    clicks: Annotated[str, typer.Option(
        metavar="FILE", help="CSV, TSV or Parquet: a text and the id of an item that was clicked "
                             "after it, a row a click.")] = ...,  # type: ignore[assignment]
    model: Annotated[str, typer.Option(
        metavar="FOLDER", help="Text encoder that made the item vectors.")] = ...,  # type: ignore[assignment]
    out: Annotated[str, typer.Option(
        metavar="FILE", help="What is learned, for `rec-jax search --learned`.")] = ...,  # type: ignore[assignment]
    query: Annotated[str, typer.Option(metavar="COLUMN", help="Column of texts.")] = "query",
    item: Annotated[str, typer.Option(metavar="COLUMN", help="Column of item ids.")] = "item_id",
    space: Annotated[str, typer.Option(
        help="text: lead texts among the vectors of the items' texts; items: to a run's vectors of "
             "its items.")] = "text",
    name: TextVectors = None,
    prefix: Annotated[str | None, typer.Option(
        help="Stands before a text, where the model was trained so.")] = None,
    table: TextTable = None,
    id: TextId = "item_id",
    columns: TextColumns = None,
    lexical: Lexical = None,
    loss: Annotated[str, typer.Option(
        help="exact: softmax over the whole catalogue; in_batch: over the clicked items of a "
             "batch.")] = "exact",
    beside: Annotated[bool, typer.Option(
        "--beside", help="Learn by the other loss, too, for its figure alone.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the clicks.")] = 20,
    rows: Annotated[int, typer.Option(help="Clicks of a batch.")] = 256,
    rate: Annotated[float, typer.Option(
        help="Highest learning rate; it falls along a cosine.")] = 0.01,
    decay: Annotated[float, typer.Option(
        help="Weight decay, back to the search without clicks.")] = 0.1,
    temperature: Annotated[float, typer.Option(help="Of the softmax, in cosines.")] = 0.05,
    held_out: Annotated[float, typer.Option(
        help="Share of the texts whose clicks measure.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of what is held out, and of the order.")] = 0,
    step: Step = None,
    data: Data = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Learn from clicks where a search leads texts. Items and encoder stay; a matrix learns."""
    from rec_jax import compilation_cache, lookup
    from rec_jax.text.learned import ClickConfig

    compilation_cache.enable()
    learning = ClickConfig(loss, epochs, rows, rate, decay, temperature, held_out, seed)  # type: ignore[arg-type]
    made = lookup.learn_search(
        run, clicks, model=model, out=out, query=query, item=item, space=space, name=name,
        prefix=prefix, table=table, id=id, columns=columns or (), lexical=lexical,
        learning=learning, beside=beside, tell=say, step=step, data=data,
        trust_code=trust_code)
    if as_json:
        print_json(made)
    else:
        _show(made)


def _show(made: dict[str, Any]) -> None:
    learned, held = made["learned"], made["held_out"]
    print_facts(f"Search learned in {made['file']}", [
        ("clicks", f"{number(learned['clicks'])} after {number(learned['texts'])} texts; "
                   f"{number(held['clicks'])} after {number(held['texts'])} held out"),
        ("left out", f"{number(made['left_out'])} clicks without a word, or on unknown items"),
        *((f"MRR@10, {way}", ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
          for way, found in made["mrr@10"].items())])
