"""How a verb joins the other processes of a multi-host run."""

from __future__ import annotations

from rec_jax.cli.show import own_stdout


def join_processes(coordinator: str | None, processes: int | None, process: int | None,
          multihost: bool) -> bool:
    """Join the other processes, if there are any; whether this one writes and prints."""
    from rec_jax import compilation_cache
    from rec_jax.mesh import is_first, start_processes

    if multihost or coordinator is not None:
        own_stdout()
        start_processes(coordinator, processes, process)
    else:
        compilation_cache.enable()
    return is_first()
