"""Shared fixtures: eight fake devices, a tiny dataset, a tiny trained run, the real data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before the first import of jax, which reads them once. Compiling is most of the work here, and a
# third of that is LLVM's optimization, of programs that then run for milliseconds. To cut a program
# into parts that are compiled at once costs a tenth where other tests have the other core.
# Eight devices on two busy cores may wait for each other longer than XLA expects (40 seconds).
os.environ.setdefault("XLA_FLAGS", " ".join([
    "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
    "--xla_cpu_collective_timeout_seconds=300"]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What "auto" takes is measured on a machine once; here it is the same on all.
os.environ.setdefault("REC_JAX_AUTO", "native")
# Programs of other tests are not read.
os.environ.setdefault("REC_JAX_PROGRAMS", "off")

import hypothesis
import jax
import numpy as np
import pytest
from command import rec_jax  # noqa: F401 (a fixture of all tests)
from item_vectors import some_vectors  # noqa: F401 (as well)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

TINY_USERS, TINY_ITEMS = 40, 50
MOST_MAPS = 20_000


# A busy machine is no fault of the code.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    # Reads that orbax left pending when another one failed raise when they are collected,
    # which may be in any later test.
    config.addinivalue_line("filterwarnings", r"ignore:Exception ignored[\s\S]*orbax:"
                            "pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs before they are too many: each holds some maps of memory, of which
    Linux gives a process 65,530, and XLA ends it where there are no more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; a stranger's clone has none."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED} (it may not be redistributed)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`interactions.csv` (user_id, item_id, time) and `items.csv` (item_id, title) beside it.

    Histories walk around a ring of items, so that there is something to learn. Item ids have
    leading zeros; user u0 has one interaction and u1 has two.
    """
    folder = tmp_path_factory.mktemp("tiny-source")
    random = np.random.default_rng(7)
    lines = ["user_id,item_id,time"]
    for user in range(TINY_USERS):
        length = user + 1 if user < 2 else int(random.integers(3, 22))
        steps = random.choice([1, 1, 1, 2, 5], length)
        # The squared uniform makes some items popular.
        place = (int(TINY_ITEMS * random.random() ** 2) + np.cumsum(steps)) % TINY_ITEMS
        lines += [f"u{user},{item:04d},{1_000_000 + 60 * when}"
                  for when, item in enumerate(place.tolist())]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    titles = [f'{item:04d},"Title {item}, the film"' for item in range(TINY_ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    return folder / "interactions.csv"


@pytest.fixture(scope="session")
def tiny_dataset(tiny_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of about 40 users and 50 items, leave-one-out."""
    from rec_jax.data.prepare import prepare
    from rec_jax.data.prepare_config import Columns, ItemFile, PrepareConfig

    out = tmp_path_factory.mktemp("tiny-data") / "dataset"
    prepare(PrepareConfig(
        source=str(tiny_csv), out=str(out), columns=Columns(time="time"),
        item_file=ItemFile(str(tiny_csv.with_name("items.csv")), title="title")))
    return out


TinyMapping = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_mapping(tiny_dataset: Path) -> TinyMapping:
    """A function of `a.b=c` lines: the mapping of a small run's config with them laid over."""
    from rec_jax import config

    base = {
        "seed": 3,
        "data": {"path": str(tiny_dataset), "length": 12},
        "table": {"dim": 16},
        "encoder": {"kind": "transformer", "layers": 1, "heads": 2, "hidden": 2, "dropout": 0.1},
        "optimizer": {"rate": 1e-2, "warmup": 4},
        "train": {"rows": 8, "steps": 36, "evaluate_every": 2, "patience": 100, "log_every": 5},
    }

    def make(*overrides: str) -> dict[str, Any]:
        return config.override(base, overrides)

    return make


@pytest.fixture(scope="session")
def tiny_training(tiny_mapping: TinyMapping,
                  tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of one finished run on the tiny dataset, as `train` returned it."""
    from rec_jax import api, config
    from rec_jax.run import RunConfig

    folder = tmp_path_factory.mktemp("tiny-runs") / "run"
    return api.train(config.build(RunConfig, tiny_mapping()), run=folder)


@pytest.fixture(scope="session")
def tiny_run(tiny_training: dict[str, Any]) -> Path:
    """The folder of that run; it is shared, so tests must not write into it."""
    return Path(tiny_training["run"])
