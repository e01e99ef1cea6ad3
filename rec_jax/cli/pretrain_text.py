"""`rec-jax pretrain-text`: masked-language training of a text encoder."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import duration, number, print_facts, print_json
from rec_jax.cli.types import Json

app = App()


@app.command("pretrain-text")
def pretrain_text(
    dataset: Annotated[Optional[str], typer.Argument(  # noqa: UP045
        metavar="[DATASET]", help="Dataset folder whose texts are read; without one, --table is "
                                  "read row by row.")] = None,
    model: Annotated[str, typer.Option(
        metavar="FOLDER", help="BERT, RoBERTa or a relative as Hugging Face writes it: "
                               "config.json, model.safetensors, tokenizer.json.")] = ...,  # type: ignore[assignment]
    out: Annotated[str, typer.Option(
        metavar="FOLDER", help="New folder of the same form.")] = ...,  # type: ignore[assignment]
    table: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FILE", help="CSV, TSV or Parquet with text; the dataset's titles and text by "
                             "default.")] = None,
    id: Annotated[str, typer.Option(
        metavar="COLUMN", help="With DATASET and --table: column of item ids.")] = "item_id",
    columns: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        "--column", metavar="COLUMN", help="Column of text; may be repeated.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the texts.")] = 3.0,
    steps: Annotated[Optional[int], typer.Option(  # noqa: UP045
        help="Batches, instead of epochs.")] = None,
    rows: Annotated[int, typer.Option(help="Texts of a batch.")] = 32,
    rate: Annotated[float, typer.Option(
        help="Highest learning rate; it warms up and falls along a cosine.")] = 1e-4,
    warmup: Annotated[int, typer.Option(help="Steps until it is reached.")] = 50,
    lora: Annotated[Optional[int], typer.Option(  # noqa: UP045
        metavar="RANK", help="Train thin products beside the blocks' matrices alone.")] = None,
    held_out: Annotated[float, typer.Option(
        help="Share of the texts that perplexity is measured on.")] = 0.05,
    max_length: Annotated[Optional[int], typer.Option(  # noqa: UP045
        help="Tokens of a text at most; as the model's folder says by default.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Of masks, order and what is held out.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a text encoder on a domain's own texts, by words that are hidden from it."""
    from rec_jax import compilation_cache
    from rec_jax.train.pretrain_text import pretrain_text as pretrain

    compilation_cache.enable()
    made = pretrain(
        model, out=out, dataset=dataset, table=table, id=id, columns=tuple(columns or ()),
        epochs=epochs, steps=steps, rows=rows, rate=rate, warmup=warmup, lora=lora,
        held_out=held_out, max_length=max_length, save_every=save_every, seed=seed,
        progress=not as_json)
    if as_json:
        print_json(made)
    else:
        _show(made)


def _show(made: dict[str, Any]) -> None:
    texts = made["texts"]
    print_facts(f"Text encoder {made['folder']}", [
        ("texts", f"{number(texts['trained'])} trained on, {number(texts['held_out'])} held out"),
        ("steps", number(made["steps"])),
        ("perplexity", f"{made['perplexity_before']:.3f} before, "
                       f"{made['perplexity_after']:.3f} after"),
        ("output layer", made["output_layer"]), ("time", duration(made["seconds"]))])
