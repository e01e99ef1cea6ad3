"""Every config of the project loads whole, and what differs from its sibling is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rec_jax import config
from rec_jax.encoders import uses_times
from rec_jax.model import build_encoder
from rec_jax.run import RunConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_config_builds_its_model_and_comes_back_from_a_run(path: Path, tmp_path: Path) -> None:
    loaded = config.load(RunConfig, path)
    encoder, params = build_encoder(
        loaded.encoder, dim=loaded.table.dim, length=loaded.data.length,
        causal=loaded.objective.causal, precision=loaded.train.precision, seed=loaded.seed)
    assert set(encoder.paths) <= set(params)
    config.save(loaded, tmp_path / "saved.toml")
    assert config.load(RunConfig, tmp_path / "saved.toml") == loaded


@pytest.mark.parametrize("path", [path for path in ALL if path.stem.startswith("ml")],
                         ids=lambda path: path.stem)
def test_configs_of_one_data_set_share_data_and_protocol(path: Path) -> None:
    base = config.load(RunConfig, CONFIGS / f"{path.stem.split('_')[0]}.toml")
    own = config.load(RunConfig, path)
    assert (own.data, own.evaluate, own.table.dim) == (base.data, base.evaluate, base.table.dim)
    assert f"rec-jax train configs/{path.name}" in path.read_text()


def test_only_data_with_times_is_read_with_times() -> None:
    reads = {path.stem for path in ALL if uses_times(config.load(RunConfig, path).encoder)}
    assert reads == {"ml100k_hstu"}
