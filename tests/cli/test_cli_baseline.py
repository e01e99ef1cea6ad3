"""`rec-jax baseline`, and `evaluate --baseline` with and without names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command, one_object, refused

FAST = ("--set", "ials.dim=4", "--set", "ials.sweeps=2")


def test_a_table_of_all_models_and_files_beside_it(rec_jax: Command,
                                                   tiny_dataset: Path) -> None:
    ended = rec_jax("baseline", tiny_dataset, *FAST, "--out", "b.json", "--no-filter-seen")
    assert ended.code == 0, ended
    for word in ("popularity", "itemknn", "userknn", "ease", "ials", "hr@10", "seen items kept"):
        assert word in " ".join(ended.out.split())
    assert max(map(len, ended.out.splitlines())) <= 80
    written = json.loads(Path("b.json").read_text())
    assert written["protocol"]["seen_items_filtered"] is False and written["machine"]
    assert list(written["models"]) == ["popularity", "itemknn", "userknn", "ease", "ials"]
    assert Path("b.png").read_bytes().startswith(b"\x89PNG")
    assert "| ease | " in Path("b.md").read_text()


def test_one_json_object(rec_jax: Command, tiny_dataset: Path) -> None:
    found = one_object(rec_jax("baseline", tiny_dataset, "--model", "ease,popularity", "--json",
                               "--split", "valid", "--tune"))
    assert list(found["models"]) == ["ease", "popularity"]
    assert found["protocol"]["split"] == "valid"
    assert found["models"]["ease"]["tuned"]["metric"] == "ndcg@10"
    told = one_object(rec_jax("baseline", tiny_dataset, "--model", "ease", "--recommend", "u5",
                              "-k", 2, "--json"))
    assert [one["rank"] for one in told["recommendations"]] == [1, 2]
    ended = rec_jax("baseline", tiny_dataset, "--model", "itemknn", "--recommend", "u5")
    assert ended.code == 0 and "the film" in ended.out


@pytest.mark.parametrize(("arguments", "expected"), [
    (("--model", "eas"), "--model 'eas' is unknown; did you mean 'ease'?"),
    (("--split", "tst"), "--split is 'tst'; expected valid or test"),
    (("--set", "ease.ridge=0"), "ease.ridge is 0.0; expected more than 0"),
    (("--set", "ease.rigde=1"), "did you mean 'ridge'"),
    (("--seen-targets", "x"), "--seen-targets: 'x' is not one of"),
    (("--recommend", "u5"), "--recommend asks one model"),
    (("--recommend", "u5", "--model", "ease", "--cold", "both"), "expected no --tune, --cold or"),
    (("--model", "ease", "--cold", "both"), "withholds no items"),
    (("--model", "ease", "--out", "."), "which is a folder; expected the name of a JSON file"),
    (("--model", "popularity", "--out", "b.md"), "--out is b.md; expected a name such as b.json"),
    (("--recommend", "u5", "--model", "ease", "-k", "0"), "--k is 0"),
    (("--recommend", "nobody", "--model", "ease"), "user id 'nobody' is not in the vocabulary"),
])
def test_bad_input_is_one_line(rec_jax: Command, tiny_dataset: Path,
                               arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refused(rec_jax("baseline", tiny_dataset, *arguments))


def test_keys_are_listed(rec_jax: Command) -> None:
    out = rec_jax("config", "keys", "baseline").out
    assert "ease.ridge: float = 500.0" in out and "evaluate.seen_targets" in out


@pytest.mark.parametrize("before", [True, False])
def test_the_option_alone_means_popularity(rec_jax: Command, tiny_run: Path,
                                           before: bool) -> None:
    words = ("--baseline", tiny_run) if before else (tiny_run, "--baseline")
    found = one_object(rec_jax("evaluate", *words, "--json"))
    assert found["popularity_baseline"] and "baselines" not in found
    for more in (("--no-baseline",), ()):
        found = one_object(rec_jax("evaluate", tiny_run, "--json", *more))
        assert "popularity_baseline" not in found


def test_names_are_shown_beside_the_model(rec_jax: Command, tiny_run: Path,
                                          tiny_dataset: Path) -> None:
    found = one_object(rec_jax("evaluate", "--baseline", "ease,popularity", tiny_run, "--json"))
    same = one_object(rec_jax("baseline", tiny_dataset, "--model", "ease", "--json"))
    assert found["baselines"]["ease"]["metrics"] == same["models"]["ease"]["metrics"]
    assert found["protocol"] == same["protocol"] and found["popularity_baseline"]
    ended = rec_jax("evaluate", tiny_run, "--baseline=ease")
    assert ended.code == 0 and "ease" in ended.out.splitlines()[0]
    assert "popularity  " not in ended.out.splitlines()[0]
    assert "--baseline 'eas' is unknown" in refused(rec_jax("evaluate", tiny_run,
                                                            "--baseline=eas"))
