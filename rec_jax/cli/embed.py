"""`rec-jax embed`: a vector an item, of its text or from a file."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import duration, number, print_facts, print_json
from rec_jax.cli.types import DatasetDir, Json
from rec_jax.errors import InputError

app = App()


@app.command()
def embed(
    dataset: DatasetDir,
    model: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FOLDER", help="Text encoder (BERT, RoBERTa, GPT-2) as Hugging Face writes it: "
                               "config.json, model.safetensors, tokenizer.json.")] = None,
    name: Annotated[str, typer.Option(help="What the vectors are called.")] = "text",
    what: Annotated[str, typer.Option(
        help="items, or queries: the texts that were searched for, which the dataset keeps.")
        ] = "items",
    table: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FILE", help="CSV, TSV or Parquet with the text of the items; the dataset's titles "
                             "and text by default.")] = None,
    id: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="COLUMN", help="Column of item ids; item_id by default.")] = None,
    columns: Annotated[Optional[list[str]], typer.Option(  # noqa: UP045
        "--column", metavar="COLUMN", help="Column of text, or of numbers with --vectors; may be "
                                           "repeated.")] = None,
    vectors: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FILE", help="Ready vectors instead of a model: .npy, .parquet or "
                             ".safetensors.")] = None,
    ids: Annotated[Optional[str], typer.Option(  # noqa: UP045
        metavar="FILE", help="With --vectors: item ids in the order of its rows, one a line, or a "
                             "column of a table, or .npy.")] = None,
    pooling: Annotated[Optional[str], typer.Option(  # noqa: UP045
        help="mean, cls or last; as the model's folder says by default.")] = None,
    normalise: Annotated[Optional[bool], typer.Option(  # noqa: UP045
        help="Vectors of length 1; as the model's folder says by default.")] = None,
    dtype: Annotated[str, typer.Option(help="What the model computes in: f32 or bf16.")] = "f32",
    max_length: Annotated[Optional[int], typer.Option(  # noqa: UP045
        help="Tokens of a text at most; as the model's folder says by default.")] = None,
    prefix: Annotated[str, typer.Option(
        help="Stands before every text, where the model was trained so.")] = "",
    pca: Annotated[Optional[int], typer.Option(  # noqa: UP045
        metavar="N", help="Keep so many principal components.")] = None,
    whiten: Annotated[bool, typer.Option(
        "--whiten", help="Principal components with variance 1 each.")] = False,
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Replace vectors of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Give every item a vector. A model reads its text, or a file has them ready."""
    from rec_jax import api, compilation_cache

    compilation_cache.enable()
    if what not in ("items", "queries"):
        raise InputError(f"--what is {what!r}; expected items or queries")
    made = api.embed(dataset, name=name, what=what, model=model,  # type: ignore[arg-type]
                     table=table, id=id, columns=columns or (),
                     vectors=vectors, ids=ids, pooling=pooling, normalise=normalise, dtype=dtype,
                     max_length=max_length, prefix=prefix, pca=pca, whiten=whiten,
                     overwrite=overwrite, progress=not as_json)
    if as_json:
        print_json(made)
    else:
        _show(made, what)


def _show(made: dict[str, Any], what: str) -> None:
    facts = [("items" if what == "items" else "texts", number(made["count"])),
             ("with a vector", number(made["with_vectors"])), ("width", number(made["dim"]))]
    facts += [(label, number(made[key])) for key, label in (
        ("unknown_ids", "rows of other items"), ("repeated_ids", "rows of an item before"))
        if made.get(key)]
    if "explained" in made:
        facts.append(("variance kept", f"{made['explained']:.1%}"))
    said = made["source"]
    if said["kind"] == "text":
        facts.append(("model", f"{said['model']} ({said['model_hash'][:12]}), {said['pooling']}"
                               f"{', normalised' if said['normalise'] else ''}, {said['dtype']}"))
        facts.append(("text", " ".join(said["columns"])))
    facts.append(("time", "there already" if made["reused"] else duration(made["seconds"])))
    kind = "Item vectors" if what == "items" else "Query vectors"
    print_facts(f"{kind} {made['folder']}/{made['name']}.npy", facts)
