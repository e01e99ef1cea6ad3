"""The verbs of decisions as Python functions, which `rec_jax.api` offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rec_jax.errors import InputError
from rec_jax.inference.served import load_served
from rec_jax.mesh import MeshConfig
from rec_jax.progress import reporter_of
from rec_jax.run import Run
from rec_jax.simulate.agent_config import AgentConfig
from rec_jax.simulate.agent_report import compare_policies, write_agent_report
from rec_jax.simulate.judge import JudgeConfig
from rec_jax.simulate.judge_log import judge_log
from rec_jax.simulate.log_files import LogColumns, LogSource
from rec_jax.simulate.train_agent import run_agent
from rec_jax.train.opening import open_run

PathLike = Path | str


def train_agent(config: Any, run: PathLike | None, overrides: Sequence[str],
                resume: PathLike | None, *, force: bool, trust_code: bool,
                start_from: PathLike | None, progress: bool) -> dict[str, Any]:
    """Train a run in an environment; the arguments are those of `rec_jax.train`."""
    if start_from is not None:
        raise InputError("a run in an environment starts from nothing; expected no --start-from")
    target, resolved = open_run(config, run, overrides, resume, force=force,
                                trust_code=trust_code, of=AgentConfig)
    with reporter_of("train", progress) as reporter:
        summary = {"run": str(target.folder), **run_agent(
            target, resolved, reporter, force=force, new=resume is None)}
    write_agent_report(target, summary)
    return summary


def simulate(run: PathLike, *, against: Sequence[PathLike] = (), users: int = 1024,
             step: int | None = None, confidence: float = 0.95, seed: int = 0,
             trust_code: bool = False) -> dict[str, Any]:
    """Returns of simulated users who meet a run's best checkpoint (or that of `step`), with
    intervals, beside other policies; see `rec_jax.simulate.agent_report.compare_policies`.

    against: other runs in an environment with the same catalogue. seed: of users and their chance.

    Raises:
      InputError: no such run or step, or one that learnt from a dataset.
    """
    return compare_policies(Run(Path(run), trust_code), step=step, users=users, seed=seed,
                            confidence=confidence,
                            against=[Run(Path(other), trust_code) for other in against])


def off_policy(log: LogSource, columns: LogColumns | None = None, *,
               settings: JudgeConfig | None = None, run: PathLike | None = None,
               temperature: float = 1.0, step: int | None = None, data: str | None = None,
               trust_code: bool = False, progress: bool = False) -> dict[str, Any]:
    """The value of a policy, estimated from the log of another one, with intervals and whether to
    believe them; see `rec_jax.simulate.judge.judge` for what is returned.

    log: a file (CSV, TSV, Parquet; also compressed, a folder of
      parts, or a glob), or columns in memory by name.
    columns: what the log's columns are called. settings: confidence, caps, the bootstrap.
    run: the policy to evaluate is the softmax of this run's scores, divided by `temperature`, over
      the whole catalogue; without it `columns.probability` names the policy's probabilities. The
      model lies on one device.
    step, data, trust_code: see `evaluate`.

    Raises:
      InputError: the log, its columns or the run are not as they should be.
    """
    if run is None and (step is not None or data is not None or temperature != 1):
        raise InputError("temperature, step and data are of a run's policy; expected a run")
    served = None if run is None else load_served(Run(Path(run), trust_code), step=step,
                                                  dataset_path=data, mesh=MeshConfig())
    with reporter_of("off-policy", progress and run is not None) as reporter:
        return judge_log(log, columns or LogColumns(), settings or JudgeConfig(), served=served,
                         temperature=temperature, reporter=reporter)
