"""Make the separate environment of a peer: `python benchmarks/peers/setup.py rectools`.

Every peer lives in its own virtual environment under `benchmarks/peers/envs/` (never committed),
made from `requirements/NAME.txt` alone, so that no peer decides another one's versions. The file
`installed.txt` in it, written last, says that the environment is complete and what it holds.
A line `# python: NAME` in the requirements names the interpreter that a peer needs, `--python`
another one. pip's own settings hold: on Linux, PIP_EXTRA_INDEX_URL with an index of CPU-only torch
saves gigabytes, as the comparison runs on the CPU.

    python benchmarks/peers/setup.py                     # lists the peers and what is set up
    python benchmarks/peers/setup.py rectools recbole
    python benchmarks/peers/setup.py recbole --python python3.10 --again
"""

from __future__ import annotations

import argparse
import re
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


def interpreter(name: str) -> str:
    """The interpreter that the requirements of `name` ask for; this one if they do not."""
    text = (HERE / "requirements" / f"{name}.txt").read_text()
    asked = re.search(r"^# python: (\S+)$", text, re.MULTILINE)
    return asked[1] if asked else sys.executable


def make(name: str, python: str) -> None:
    """Make the environment of `name` with interpreter `python`; an unfinished one goes first."""
    folder = environment(name)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    wanted = HERE / "requirements" / f"{name}.txt"
    subprocess.run([*pip, "install", "--quiet", "-r", str(wanted)], check=True)
    frozen = subprocess.run([*pip, "freeze"], check=True, text=True, capture_output=True).stdout
    (folder / "installed.txt").write_text(frozen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(peers()))
    parser.add_argument("--python", help="interpreter of the environment")
    parser.add_argument("--again", action="store_true", help="make it anew if it is there")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in peers()]
    if unknown:
        parser.error(f"unknown peer {unknown[0]!r}; expected one of {', '.join(peers())}")
    for name in options.names:
        if options.again or not is_ready(name):
            wanted = options.python or interpreter(name)
            python = shutil.which(wanted)
            if python is None:
                parser.error(f"no program {wanted}, which {name} needs; expected --python PROGRAM")
            try:
                make(name, python)
            except subprocess.CalledProcessError as error:
                parser.exit(1, f"{name}: {' '.join(map(str, error.cmd[:4]))} .. failed with code "
                               f"{error.returncode}\n")
        print(f"{name}: {environment(name)}")
    if not options.names:
        for name in peers():
            print(f"{name}: {'ready' if is_ready(name) else 'not set up'}")


if __name__ == "__main__":
    main()
