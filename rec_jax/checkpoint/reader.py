"""Reading one checkpoint: its files are compared with the manifests, arrays are found by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec_jax.checkpoint.array_source import ArraySource, open_item, read_blocks
from rec_jax.checkpoint.errors import Damaged
from rec_jax.checkpoint.index import CheckpointInfo, read_info
from rec_jax.checkpoint.layout import LEAVES, MANIFEST, named_leaves, step_name
from rec_jax.checkpoint.load import load_leaf
from rec_jax.checkpoint.manifest import check_manifest
from rec_jax.checkpoint.reorder import scatter_rows
from rec_jax.errors import InputError
from rec_jax.locks import Pin

_FLOATS = ("float32", "bfloat16")


@dataclass(frozen=True)
class CheckpointReader:
    """One checkpoint whose files agree with its manifest; arrays are read when asked for.

    items: sources of its leaves, by item and path.
    size: bytes of its files, without those of a delta's base.
    pin: as long as it lives, no process removes the checkpoint, nor what it builds on.
    """

    name: str
    path: Path
    info: CheckpointInfo
    items: dict[str, dict[str, ArraySource]]
    size: int
    pin: Pin

    def restore(self, like: Mapping[str, Any], *, cast: bool = False,
                widen: bool = False, moved: Mapping[str, np.ndarray] | None = None
                ) -> dict[str, Any]:
        """The named pytrees in the structure, types and shardings of `like`; see `Checkpoints`.

        moved: by path of a leaf, where its rows go, see `scatter_rows`; others are 0.
        """
        matched = {name: self._match(name, tree, cast, widen) for name, tree in like.items()}
        found = {}
        for name, tree in like.items():
            leaves = [
                scatter_rows(_zeros(leaf), source, moved[path])
                if moved and path in moved else load_leaf(source, leaf)
                for source, (path, leaf) in zip(matched[name], named_leaves(tree).items(),
                                                strict=True)]
            found[name] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        return found

    def verify(self) -> None:
        """Read every byte of the arrays; raises `Damaged`, naming the first file that changed."""
        for sources in self.items.values():
            for source in sources.values():
                if source.shape:
                    for _ in read_blocks(source):
                        pass
                else:
                    source.read(0, 1)

    def _match(self, name: str, tree: Any, cast: bool, widen: bool) -> list[ArraySource]:
        """The sources of a pytree's leaves, all checked before anything is read."""
        if name not in self.items:
            raise InputError(f"checkpoint {self.name} has no item {name!r}; it has "
                             f"{', '.join(sorted(self.items))}")
        sources, wanted = self.items[name], named_leaves(tree)
        for kind, paths in (("lacks", wanted.keys() - sources.keys()),
                            ("has", sources.keys() - wanted.keys())):
            if paths:
                raise InputError(f"checkpoint {self.name} does not fit: its item {name!r} {kind} "
                                 f"{len(paths)} leaves such as {min(paths)}"
                                 f"{', which the config has no place for' * (kind == 'has')}")
        for path, leaf in wanted.items():
            source, dtype = sources[path], np.dtype(leaf.dtype)
            if tuple(leaf.shape) != source.shape:
                raise InputError(f"checkpoint {self.name} does not fit: {name}{path} is "
                                 f"{list(source.shape)}, expected {list(leaf.shape)}")
            both_float = dtype.name in _FLOATS and source.dtype.name in _FLOATS
            wider = widen and dtype.itemsize > source.dtype.itemsize
            if dtype != source.dtype and not (both_float and (cast or wider)):
                raise InputError(f"checkpoint {self.name} does not fit: {name}{path} is "
                                 f"{source.dtype}, expected {dtype}")
        return [sources[path] for path in wanted]


def open_checkpoint(paths: Mapping[int, Path], step: int, folder: str) -> CheckpointReader:
    """Open the checkpoint of `step`, of those in `paths`, with all that it builds on.

    folder: how messages name the place of the checkpoints.

    Raises:
      Damaged: something is not as it was written.
    """
    pin = Pin(paths[step] / MANIFEST)
    try:
        # From the top down: a checkpoint's manifest is checked before its content is used.
        sizes, infos = [check_manifest(paths[step], hashes=True)], [
            read_step_info(paths[step], step, folder)]
        while (base := infos[-1].base) is not None:
            if base not in paths:
                raise Damaged(f"checkpoint {folder}/{step_name(infos[-1].step)} changes step "
                              f"{base}, which is missing")
            sizes.append(check_manifest(paths[base], hashes=True))
            infos.append(read_step_info(paths[base], base, folder))
        items: dict[str, dict[str, ArraySource]] = {}
        for info in reversed(infos):
            items = {index.parent.name: open_item(index.parent, items.get(index.parent.name))
                     for index in sorted(paths[info.step].glob(f"*/{LEAVES}"))}
        return CheckpointReader(f"{folder}/{step_name(step)}", paths[step], infos[0], items,
                                sizes[0], pin)
    except BaseException:
        pin.close()
        raise


def read_step_info(path: Path, step: int, folder: str) -> CheckpointInfo:
    """What the checkpoint of `step` says about itself; raises `Damaged`."""
    info = read_info(path)
    if info.step != step:
        raise Damaged(f"checkpoint {folder}/{step_name(step)} says that it is of step {info.step}")
    return info


def _zeros(leaf: Any) -> jax.Array:
    """Zeros like `leaf`, made on its devices."""
    made: jax.Array = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype),
                              out_shardings=leaf.sharding)()
    return made
