"""`rec-jax data`: look after prepared datasets."""

from __future__ import annotations

from pathlib import Path

from rec_jax.cli.options import App
from rec_jax.cli.show import print_json, say
from rec_jax.cli.types import DatasetDir, Json
from rec_jax.errors import InputError

app = App(no_args_is_help=True, help="Look after prepared datasets.")


@app.callback()
def data() -> None:
    """Look after prepared datasets."""


@app.command()
def verify(
    dataset: DatasetDir,
    as_json: Json = False,
) -> None:
    """Read every byte and hold it against its checksum; exit code 2 if something is damaged."""
    from rec_jax.data.verify import verify as run

    found = run(Path(dataset))
    if as_json:
        print_json({"dataset": dataset, **found})
    problems = [entry["problem"] for entry in found["files"] if entry["problem"]]
    problems += found["problems"]
    if problems:
        raise InputError(f"dataset {dataset} is damaged: {'; '.join(problems)}")
    if as_json:
        return
    size = sum(entry["bytes"] for entry in found["files"]) / 2**20
    number = len(found["files"])
    if found["checksums"] == "files":
        line = f"{number} files, {size:.2f} MiB, as they were written"
    else:
        line = (f"{number} files, {size:.2f} MiB, belong together, but the dataset has no "
                "checksums of files (it was made before they were kept); "
                + ("hashes of values agree of those that have one"
                   if found["checksums"] == "values" else "nothing says what was written"))
    say(f"{dataset}: {line}")
