"""`python -m rec_jax`, and the program `rec-jax`."""

from __future__ import annotations

import os
import sys

from rec_jax.allocator import restart_with_tuned_malloc

_QUICK = {"config", "--help", "--version", "--install-completion", "--show-completion"}


def start() -> None:
    """The command line, in a process whose malloc keeps freed memory where the verb computes.

    That process begins anew, so what the command line imports waits until then.
    """
    words = sys.argv[1:]
    if words and not _QUICK.intersection(words) and "_REC_JAX_COMPLETE" not in os.environ:
        restart_with_tuned_malloc()
    from rec_jax.cli.app import main

    main()


if __name__ == "__main__":
    start()
