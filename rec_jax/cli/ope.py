"""`rec-jax ope`: the value of a policy from the log of another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from rec_jax.cli.show import number, print_facts, print_json, print_table, say
from rec_jax.cli.types import Json

_BOUNDS = {"hoeffding": "Hoeffding", "empirical_bernstein": "empirical Bernstein"}

_Name = str | None
_Number = float | None


def ope(
    log: Annotated[str, typer.Argument(
        metavar="LOG", help="CSV, TSV or Parquet, also compressed; a file, a folder of files or a "
                            "glob. A row is one logged action.")],
    reward: Annotated[str, typer.Option(help="Column of the reward.")] = "reward",
    propensity: Annotated[str, typer.Option(
        help="Column of the logging policy's probability of the action.")] = "propensity",
    probability: Annotated[_Name, typer.Option(
        help="Column of the evaluated policy's probability of the action; `probability` by "
             "default.")] = None,
    expected_logged: Annotated[_Name, typer.Option(
        help="Column of a reward model's value of the logged action.")] = None,
    expected_policy: Annotated[_Name, typer.Option(
        help="Column of its mean under the evaluated policy.")] = None,
    position: Annotated[_Name, typer.Option(help="Column of the place in a slate.")] = None,
    group: Annotated[_Name, typer.Option(
        help="Column whose rows belong together, such as a user or a slate; intervals take groups "
             "as independent, not rows.")] = None,
    run: Annotated[_Name, typer.Option(
        metavar="RUN", help="Evaluate this run: the softmax of its scores over all items.")] = None,
    item: Annotated[_Name, typer.Option(
        help="With --run: column of the logged item; `item_id` by default.")] = None,
    user: Annotated[_Name, typer.Option(
        help="With --run: column of the user of the dataset; `user_id` by default.")] = None,
    history: Annotated[_Name, typer.Option(
        help="With --run: column of the history instead: a list of item ids, or text with blanks "
             "between, oldest first.")] = None,
    time: Annotated[_Name, typer.Option(
        help="With --run: column of the time of the action; the user's history ends before "
             "it.")] = None,
    temperature: Annotated[float, typer.Option(
        help="With --run: scores are divided by it; 1 is the softmax that was trained.")] = 1.0,
    step: Annotated[int | None, typer.Option(
        help="With --run: checkpoint to use; the best one by default.")] = None,
    data: Annotated[_Name, typer.Option(
        help="With --run: dataset folder, if it moved since training.")] = None,
    confidence: Annotated[float, typer.Option(help="Of every interval.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Samples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    cap: Annotated[_Number, typer.Option(help="Largest weight of the estimates.")] = None,
    bound_cap: Annotated[_Number, typer.Option(
        help="Largest weight of the bounds; --cap, or else the root of the rows.")] = None,
    reward_low: Annotated[_Number, typer.Option(
        help="Lowest reward that there can be, for the bounds.")] = None,
    reward_high: Annotated[_Number, typer.Option(help="The highest.")] = None,
    switch: Annotated[float, typer.Option(
        help="Weight above which switch_dr believes the reward model.")] = 10.0,
    shrinkage: Annotated[float, typer.Option(
        help="Of dros: 0 is the reward model, more is nearer to dr.")] = 100.0,
    trust_code: Annotated[bool, typer.Option(
        "--trust-code", help="Load modules of third parties that the run's config names; their "
                             "code runs.")] = False,
    as_json: Json = False,
) -> None:
    """Estimate what a policy would have earned, from the log of another one."""
    from rec_jax import api
    from rec_jax.simulate.judge import JudgeConfig
    from rec_jax.simulate.log_files import LogColumns

    settings = JudgeConfig(confidence=confidence, resamples=resamples, seed=seed, cap=cap,
                           bound_cap=bound_cap, reward_low=reward_low, reward_high=reward_high,
                           switch=switch, shrinkage=shrinkage)
    columns = LogColumns(reward=reward, propensity=propensity, probability=probability,
                         expected_logged=expected_logged, expected_policy=expected_policy,
                         position=position, group=group, item=item, user=user, history=history,
                         time=time)
    result = api.off_policy(log, columns, settings=settings, run=run, temperature=temperature,
                            step=step, data=data, trust_code=trust_code, progress=not as_json)
    if as_json:
        print_json({"log": log, **result})
        return
    _show(log, result)
    for line in result["notes"]:
        say(f"note: {line}")


def _show(log: str, result: Mapping[str, Any]) -> None:
    share = f"{result['settings']['confidence']:.4g}"
    print_table(
        ["estimate", "value", "bootstrap", "gain on the log", "ratio"],
        [(name, _figure(found["value"]), _pair(found["bootstrap"]),
          _pair(found.get("gain_bootstrap")), _figure(found.get("relative")))
         for name, found in result["estimates"].items()],
        numbers=("value", "bootstrap", "gain on the log", "ratio"))
    if "positions" in result:
        rows = result["positions"]
        names = [name for name in rows[0] if name not in ("position", "rows")]
        print_table(["position", "rows", *names],
                    [(row["position"], number(row["rows"]), *(_figure(row[name])
                                                              for name in names))
                     for row in rows], numbers=("rows", *names))
    print_facts(f"Log {log}, intervals of {share}", _facts(result))


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    bounds, support = result["bounds"], result["support"]
    for name, label in _BOUNDS.items():
        if name in bounds:
            yield f"true value, {label}", (
                f"{_pair(bounds[name])} for rewards from {bounds['reward_low']:g} to "
                f"{bounds['reward_high']:g}, weights up to {bounds['cap']:.4g}")
    yield "rows", number(result["rows"])
    if "groups" in result:
        yield "groups", number(result["groups"])
    yield "effective sample", f"{support['effective_sample']:,.1f}"
    chance = support["mean_weight_p"]
    yield "mean weight", _figure(support["mean_weight"]) + (
        "" if chance is None else f" (p of a true mean of 1: {chance:.3g})")
    yield "largest weight", _figure(support["largest_weight"])
    yield "actions that the policy never takes", f"{support['never_taken']:.1%} of rows"
    if "run" in result:
        yield "run", f"{result['run']}, step {number(result['step'])}"
        yield "temperature", f"{result['temperature']:g}"
        yield "items that the log shows", (
            f"{number(result['items_shown'])} of {number(result['catalogue'])}; the run takes one "
            f"of them with probability {_figure(result['probability_of_items_shown'])}")


def _figure(value: float | None) -> str:
    """Significant digits, as values of clicks are small; a dash where there is no number."""
    return "-" if value is None else f"{value:,.4g}"


def _pair(pair: Sequence[float] | None) -> str:
    return "-" if pair is None else f"{_figure(pair[0])} to {_figure(pair[1])}"
