"""`rec-jax simulate`: what simulated users earn by a run, and by other policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rec_jax.cli.show import number, print_json, print_table, say
from rec_jax.cli.types import Json, Trust
from rec_jax.errors import InputError


def simulate(
    run: Annotated[str, typer.Argument(
        metavar="RUN", help="Folder of a run that was trained with [environment].")],
    against: Annotated[list[str] | None, typer.Option(
        metavar="RUN", help="Another such run with the same catalogue; may be repeated.")] = None,
    users: Annotated[int, typer.Option(help="Users that every policy meets.")] = 1024,
    step: Annotated[int | None, typer.Option(
        help="Checkpoint to use; the best one by default.")] = None,
    confidence: Annotated[float, typer.Option(help="Of every interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the users and their chance.")] = 0,
    turns: Annotated[int, typer.Option(
        help="Turns of one user's trajectory that are shown.")] = 10,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Play with simulated users. Returns by policy with intervals, and one user's trajectory."""
    from rec_jax import api

    if turns < 0:
        raise InputError(f"turns is {turns}; expected at least 0")
    result = api.simulate(run, against=against or (), users=users, step=step,
                          confidence=confidence, seed=seed, trust_code=trust_code)
    if as_json:
        print_json(result)
    else:
        _show(result, turns)


def _show(result: Mapping[str, Any], turns: int) -> None:
    print_table(
        ["policy", "return", "interval", "less than best items"],
        [(name, f"{found['return']:,.2f}", _pair(found["interval"]),
          _pair(found["less_than_best_interval"])) for name, found in result["policies"].items()],
        numbers=("return", "interval", "less than best items"))
    shown = result["trajectory"][:turns]
    if shown:
        print_table(list(shown[0]), [tuple(_cell(value) for value in turn.values())
                                     for turn in shown], numbers=tuple(shown[0]))
    say(f"step {number(result['step'])}, {number(result['users'])} users, intervals of "
        f"{result['confidence']:.4g}")


def _pair(pair: Any) -> str:
    return f"{pair[0]:,.2f} to {pair[1]:,.2f}"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
