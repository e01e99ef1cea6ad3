"""The configs that come with the package: `configs/` of the checkout, `rec_jax.configs` installed.

The name of one works where the path of a config does, as long as no such file exists.
"""

from __future__ import annotations

from pathlib import Path

from rec_jax.errors import InputError, did_you_mean

_LINE = 120  # characters; a longer first sentence is cut at its colon


def folder() -> Path:
    """Where the shipped configs are."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def locate(path: Path | str) -> Path:
    """`path` if it exists, else the shipped config of that name (`ml100k`, `configs/ml100k.toml`).

    Raises:
      InputError: there is neither.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        return path
    name = path.stem if path.suffix == ".toml" else path.name
    if path.parent in (Path(), Path("configs")) and name in names():
        return folder() / f"{name}.toml"
    if path.exists():
        return path  # a folder: whoever reads it says so
    hint = did_you_mean(name, names(), cutoff=0.6, form=" ({})")
    raise InputError(f"config {path} does not exist; expected a TOML file, or the name of a "
                     f"shipped config{hint}: `rec-jax config list`")


def about(name: str) -> str:
    """The first sentence of a shipped config's comment."""
    lines = []
    for line in (folder() / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        lines.append(text)
    sentence = " ".join(lines).partition(". ")[0].rstrip(".")
    return sentence if len(sentence) <= _LINE else sentence.partition(": ")[0]
