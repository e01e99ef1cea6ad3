"""`python -m rec_jax`, and the program `rec-jax`."""

from __future__ import annotations

from rec_jax.allocator import restart_with_kept_memory


def start() -> None:
    """The command line in a process whose malloc keeps freed memory.

    That process begins anew, so what the command line imports waits until then.
    """
    restart_with_kept_memory()
    from rec_jax.cli import main

    main()


if __name__ == "__main__":
    start()
