"""Blocks are the chunks of zarr v3: tensorstore reads what is written here, and the other way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from rec_jax.checkpoint import Checkpoints, Damaged
from rec_jax.checkpoint.array_source import BlockSource
from rec_jax.checkpoint.block_writer import BlockWriter, write_array
from rec_jax.checkpoint.blocks import MIN_DIRECT_BYTES, block_path, read_block, write_rows
from rec_jax.checkpoint.layout import PACKED_BYTES, array_spec

DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.int8),
          np.dtype(np.int64), np.dtype(bool))
SHAPES = ((24,), (24, 5), (24, 2, 3))


def values(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int = 0) -> np.ndarray:
    most = 2 if dtype.kind == "b" else 100
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def opened(folder: Path, like: np.ndarray, block: int) -> Any:
    spec = array_spec(folder, like.shape, like.dtype.name, block)
    return ts.open(spec, create=True, open=True).result()


def layouts(test: Any) -> Any:
    """Any shape and type, in blocks that fit the rows or do not."""
    for name, values in (("shape", SHAPES), ("dtype", DTYPES), ("block", (6, 7, 24, 50))):
        test = pytest.mark.parametrize(name, values, ids=str)(test)
    return test


@layouts
def test_tensorstore_reads_what_is_written_here(
        tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], block: int) -> None:
    given = values(shape, dtype)
    write_array(tmp_path / "a", given, block)
    assert opened(tmp_path / "a", given, block).read().result().tobytes() == given.tobytes()


@layouts
def test_what_tensorstore_wrote_is_read_here(
        tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], block: int) -> None:
    given = values(shape, dtype)
    opened(tmp_path / "a", given, block).write(given).result()
    stored = BlockSource(tmp_path / "a", shape, dtype.name, block)
    for first, last in ((0, 24), (0, 6), (6, 18), (1, 13), (14, 24)):
        assert stored.read(first, last).tobytes() == given[first:last].tobytes()


def test_rows_arrive_in_any_pieces(tmp_path: Path) -> None:
    given = values((24, 5), np.dtype(np.float32))
    with BlockWriter(tmp_path / "a", given.shape, "float32", 6) as writer:
        for first, last in ((6, 20), (0, 6), (20, 24)):
            writer.write(first, given[first:last])
    stored = BlockSource(tmp_path / "a", given.shape, "float32", 6)
    assert stored.read(0, 24).tobytes() == given.tobytes()


def test_columns_arrive_apart(tmp_path: Path) -> None:
    given = values((24, 6), np.dtype(np.float32))
    with BlockWriter(tmp_path / "a", given.shape, "float32", 6) as writer:
        for columns in (slice(0, 2), slice(2, 6)):
            writer.write(0, given[:, columns], (columns,))
    stored = BlockSource(tmp_path / "a", given.shape, "float32", 6)
    assert stored.read(0, 24).tobytes() == given.tobytes()


@pytest.mark.parametrize("harm", ["cut", "longer", "empty", "first bit", "last bit of the sum"])
def test_a_block_that_was_harmed_is_refused(tmp_path: Path, harm: str) -> None:
    given, path = values((6, 5), np.dtype(np.float32)), tmp_path / "b"
    write_rows(path, given)
    data = bytearray(path.read_bytes())
    match harm:
        case "cut":
            del data[-1]
        case "longer":
            data.append(0)
        case "empty":
            data.clear()
        case "first bit":
            data[0] ^= 1
        case "last bit of the sum":
            data[-1] ^= 128
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"has changed|has \d+ bytes, expected 124"):
        read_block(path, given)


def test_harm_is_named_by_whoever_opened_the_array(tmp_path: Path) -> None:
    given = values((24, 5), np.dtype(np.float32))
    write_array(tmp_path / "a", given, 6)
    path = block_path(tmp_path / "a", 2, 2)
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    stored = BlockSource(tmp_path / "a", given.shape, "float32", 6)
    assert stored.read(0, 12).tobytes() == given[:12].tobytes()
    with pytest.raises(Damaged, match="a block has changed"):
        stored.read(12, 18)
    with pytest.raises(Damaged, match="cannot be read"):
        stored.read(13, 17)  # tensorstore's own reading


def test_a_failed_write_is_raised(tmp_path: Path) -> None:
    given = values((24, 5), np.dtype(np.float32))
    with pytest.raises(NotADirectoryError), \
            BlockWriter(tmp_path / "a", given.shape, "float32", 6) as writer:
        (tmp_path / "a" / "c").write_text("in the way")
        writer.write(0, given)


def test_a_host_array_in_the_other_order_of_bytes_comes_back(tmp_path: Path) -> None:
    given = np.arange(PACKED_BYTES, dtype=">f4")
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"model": {"small": given[:3], "large": given}}, {})
        checkpoints.wait()
        found = checkpoints.open(1).items["model"]
        for name, wanted in (("small", given[:3]), ("large", given)):
            np.testing.assert_array_equal(found[f"['{name}']"].read(0, len(wanted)), wanted)


def test_a_shape_that_its_files_do_not_have_is_refused_before_memory_is_taken(
        tmp_path: Path) -> None:
    block = 2**40
    ts.open(array_spec(tmp_path / "b", (block,), "int64", block), create=True).result()
    (tmp_path / "b" / "c").mkdir()
    (tmp_path / "b" / "c" / "0").write_bytes(b"1234")
    with pytest.raises(Damaged, match="its first block has 4 bytes, expected"):
        BlockSource(tmp_path / "b", (block,), "int64", block)


def large_block(folder: Path) -> tuple[np.ndarray, Path]:
    """A block of an odd size that is read around the page cache, on the disk and out of it."""
    given = np.random.default_rng(0).integers(0, 256, MIN_DIRECT_BYTES + 3, np.uint8)
    write_rows(folder / "b", given)
    drop_from_cache(folder / "b")
    return given, folder / "b"


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


needs_linux = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="reads so on Linux only")


@needs_linux
@pytest.mark.parametrize("offset", [0, 1, 64])
def test_a_block_out_of_the_cache_is_read_whole(tmp_path: Path, offset: int) -> None:
    given, path = large_block(tmp_path)
    rows = np.zeros(len(given) + offset, np.uint8)[offset:]
    for _ in range(2):
        read_block(path, rows)
        assert rows.tobytes() == given.tobytes()
        rows[:] = 0


@needs_linux
def test_a_block_out_of_the_cache_is_read_where_nothing_can_go_around_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, path = large_block(tmp_path)
    rows, real = np.zeros_like(given), os.open

    def refuse(name: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    read_block(path, rows)
    assert rows.tobytes() == given.tobytes()


@needs_linux
def test_a_harmed_block_out_of_the_cache_is_refused(tmp_path: Path) -> None:
    given, path = large_block(tmp_path)
    with path.open("r+b") as file:
        file.seek(MIN_DIRECT_BYTES)
        file.write(bytes([given[MIN_DIRECT_BYTES] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    drop_from_cache(path)
    with pytest.raises(ValueError, match="has changed"):
        read_block(path, given)
