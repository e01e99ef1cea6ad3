"""`rec-jax adapt`: what becomes of a run with adapters."""

from __future__ import annotations

from typing import Annotated

import typer

from rec_jax.cli.options import App
from rec_jax.cli.show import number, print_json, say
from rec_jax.cli.types import Json, RunDir, Step, Trust

app = App(no_args_is_help=True, help="Look after the adapters of a fine-tuned run.")


@app.callback()
def about() -> None:
    """Look after the adapters of a fine-tuned run."""


@app.command("text-encoder")
def text_encoder(
    run: RunDir,
    out: Annotated[str, typer.Option(help="New folder of the encoder.")],
    step: Step = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write the text encoder that a run has trained, as a folder that `embed` reads."""
    from rec_jax.train.merging import write_text_encoder

    found = write_text_encoder(run, out=out, step=step, trust_code=trust_code)
    if as_json:
        print_json(found)
    else:
        say(f"text encoder {found['folder']}: that of step {number(found['step'])}")


@app.command()
def merge(
    run: RunDir,
    out: Annotated[str, typer.Option(help="Folder of the new run.")],
    step: Step = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a run whose matrices have what LoRA added to them, and which is as any other."""
    from rec_jax import api

    found = api.merge_adapters(run, out=out, step=step, trust_code=trust_code)
    if as_json:
        print_json(found)
    else:
        say(f"run {found['run']}: {number(len(found['merged']))} matrices merged, checkpoint of "
            f"step {number(found['step'])}")
