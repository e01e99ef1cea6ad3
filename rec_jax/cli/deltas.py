"""`rec-jax deltas`: changes of item embeddings, from a run to a copy that serves them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rec_jax.cli import summary
from rec_jax.cli.options import App
from rec_jax.cli.show import print_json
from rec_jax.cli.types import Data, Json, RunDir, Step, Trust

app = App(no_args_is_help=True, help="Send changes of item embeddings to a copy that serves them.")


@app.command()
def write(
    run: RunDir,
    base: Annotated[str, typer.Option(
        metavar="EXPORT|RUN", help="What the copy holds: an export, or the run that it is of.")],
    out: Annotated[str, typer.Option(help="New folder for the delta.")],
    dtype: Annotated[str, typer.Option(help="f32, or bf16: half the size, rounded rows.")] = "f32",
    step: Step = None,
    data: Data = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write ids and rows of the items that changed or are new, and ids of those that are gone.

    RUN may be an export of items, too. Items go from one export to another, and from a run of a
    stream; any other run keeps all.
    """
    from rec_jax.inference.deltas import write_deltas
    from rec_jax.train.stream_verbs import exported

    with exported(run, step=step, data=data) as new:
        about = write_deltas(new, base, out, dtype=dtype,  # type: ignore[arg-type]
                             step=step, data=data, trust_code=trust_code)
    _show(f"Delta in {out}", about, as_json)


@app.command()
def apply(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="Folder of the delta.")],
    to: Annotated[str, typer.Option(help="Folder of the export; it is replaced as a whole.")],
    as_json: Json = False,
) -> None:
    """Make an export the version that a delta leads to, at once or not at all."""
    from rec_jax.inference.deltas import apply_deltas

    _show(f"Embeddings in {to}", apply_deltas(delta, to), as_json)


def _show(title: str, about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(about)
        return
    said = {name: value for name, value in about.items()
            if name not in ("files", "checksum", "format_version")}
    summary.other(title, said, {"count": "items sent", "added": "of which new",
                                "gone": "items taken away", "dim": "width",
                                "base": "from version", "result": "to version"})
