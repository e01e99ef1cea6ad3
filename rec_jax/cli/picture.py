"""`rec-jax map`: a picture of vectors."""

from __future__ import annotations

from typing import Annotated

import typer

from rec_jax.cli.show import number, print_json, say
from rec_jax.cli.types import Json


def draw(
    source: Annotated[str, typer.Argument(
        metavar="EXPORT", help="Folder that `rec-jax export` wrote; or a dataset, with "
                               "--vectors.")],
    out: Annotated[str, typer.Option(help="PNG file to write.")] = "map.png",
    colour: Annotated[str | None, typer.Option(
        metavar="COLUMN", help="Column of --table that colours the points; of several values in a "
                               "cell the first one counts.")] = None,
    table: Annotated[str | None, typer.Option(
        metavar="FILE", help="CSV, TSV or Parquet about the items or users.")] = None,
    id: Annotated[str, typer.Option(
        metavar="COLUMN", help="Its column of ids.")] = "item_id",
    vectors: Annotated[str | None, typer.Option(
        metavar="NAME", help="Of a dataset: these item vectors (`rec-jax embed`).")] = None,
    most: Annotated[int, typer.Option(help="Draw the first so many, the most popular.")] = 20_000,
    as_json: Json = False,
) -> None:
    """Draw vectors in the two dimensions in which they differ most."""
    from rec_jax.inference.vector_map import write_map

    made = write_map(source, out, colour=colour, table=table, id=id, vectors=vectors, most=most)
    if as_json:
        print_json(made)
        return
    shares = " and ".join(f"{share:.1%}" for share in made["variance_shares"])
    say(f"{made['picture']}: {number(made['vectors'])} vectors, {shares} of their variance"
        + ("" if made["coloured"] is None else f", {number(made['coloured'])} coloured"))
