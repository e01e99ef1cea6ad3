"""The files of docs/extending, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "extending"


def example(name: str) -> Any:
    """The example of that name, imported once."""
    found = sys.modules.get(f"extending_{name}")
    if found is None:
        spec = importlib.util.spec_from_file_location(f"extending_{name}", FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    return found
