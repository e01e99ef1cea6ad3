"""One of two processes that ask a run on meshes of their eight devices.

    python asking_processes.py RUN FOLDER ADDRESS INDEX

Answers on 2x4 and 1x8 go to FOLDER/answersINDEX.json, with the rows of the tables that were read
for the second; the process that writes leaves exports in FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np


def main(run: str, folder: Path, address: str, index: int) -> None:
    from rec_jax import api
    from rec_jax.checkpoint.array_source import BlockSource
    from rec_jax.mesh import start_processes

    start_processes(address, 2, index)
    read: list[list[int]] = []
    read_into = BlockSource.read_into

    def recorded(self: BlockSource, rows: np.ndarray, first: int) -> None:
        read.append([first, first + len(rows)])
        read_into(self, rows, first)

    BlockSource.read_into = recorded  # type: ignore[method-assign]
    answers: dict[str, list] = {"meshes": [], "evaluated": [], "recommended": []}
    for mesh in (None, "1x8"):
        read.clear()
        model = api.load(run, mesh=mesh)
        answers["meshes"].append(list(model.mesh.shape.values()))
        answers["read"] = [list(map(int, (min(first for first, _ in read),
                                          max(last for _, last in read))))]
        answers["evaluated"].append(api.evaluate(model))
        answers["recommended"].append(
            [(entry.item, entry.score) for entry in api.recommend(model, user="u5", k=120)])
    api.export(model, out=folder / "users", what="users")
    api.export(model, out=folder / "inputs", what="inputs")  # through the devices
    api.export(run, out=folder / "items", what="items")  # from the checkpoint
    (folder / f"answers{index}.json").write_text(json.dumps(answers))
    assert jax.process_count() == 2


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
