"""Make the separate environment of a peer: `python benchmarks/peers/setup.py rectools`.

Every peer lives in its own virtual environment under `benchmarks/peers/envs/` (never committed),
made from `requirements/NAME.txt` alone, so that no peer decides another one's versions. The file
`installed.txt` in it, written last, says that the environment is complete and what it holds.

    python benchmarks/peers/setup.py                     # lists the peers and what is set up
    python benchmarks/peers/setup.py rectools recbole
    python benchmarks/peers/setup.py recbole --python python3.10 --again
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def peers() -> list[str]:
    """Names that can be set up: one requirements file each."""
    return sorted(path.stem for path in (HERE / "requirements").glob("*.txt"))


def environment(name: str) -> Path:
    """Folder of a peer's environment, whether it exists or not."""
    return HERE / "envs" / name


def is_ready(name: str) -> bool:
    """Whether the environment of `name` was made to its end."""
    return (environment(name) / "installed.txt").is_file()


def make(name: str, python: str) -> None:
    """Make the environment of `name` with interpreter `python`; an unfinished one goes first."""
    folder = environment(name)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    wanted = HERE / "requirements" / f"{name}.txt"
    # The requirements are constraints as well: what a dependency asks for cannot lift a pin.
    subprocess.run([*pip, "install", "--quiet", "-r", str(wanted)], check=True)
    frozen = subprocess.run([*pip, "freeze"], check=True, text=True, capture_output=True).stdout
    (folder / "installed.txt").write_text(frozen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(peers()))
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--again", action="store_true", help="make it anew if it is there")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in peers()]
    if unknown:
        parser.error(f"unknown peer {unknown[0]!r}; expected one of {', '.join(peers())}")
    python = shutil.which(options.python)
    if python is None:
        parser.error(f"--python {options.python}: no such program")
    for name in options.names:
        if options.again or not is_ready(name):
            make(name, python)
        print(f"{name}: {environment(name)}")
    if not options.names:
        for name in peers():
            print(f"{name}: {'ready' if is_ready(name) else 'not set up'}")


if __name__ == "__main__":
    main()
