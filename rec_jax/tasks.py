"""Work that is cut into tasks, done side by side: by processes of this machine, or by Ray.

A task is a function of a module and one argument, both of which travel by pickle; large things
travel as files of a folder that all workers see. Results come in the order of the arguments,
whoever was faster.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from rec_jax.errors import InputError, first_line

A = TypeVar("A")
R = TypeVar("R")


class Tasks(Protocol):
    """Whoever does tasks."""

    def run(self, function: Callable[[A], R], arguments: Sequence[A]) -> Iterator[R]:
        """`function` of each argument, in order.

        Raises:
          InputError: one of the tasks was refused, in the words of its own error.
          RuntimeError: a worker was lost, and its task with it.
        """
        ...


@contextlib.contextmanager
def processes(count: int) -> Iterator[Tasks]:
    """So many processes of this machine."""
    context = multiprocessing.get_context("spawn")  # threads of Polars do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(count, mp_context=context) as pool:
        try:
            yield _Pool(pool)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Tasks]:
    """The workers of a Ray cluster; "local" starts one on this machine, and ends it afterwards.

    Raises:
      InputError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise InputError("tasks of Ray need the package ray: pip install 'rec-jax[ray]'") from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False,
                     include_dashboard=False if address == "local" else None)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"the Ray cluster {address} cannot be reached "
                             f"({first_line(error)})") from None
    try:
        yield _Ray(ray)
    finally:
        if started:
            ray.shutdown()


class _Pool:
    def __init__(self, pool: concurrent.futures.Executor) -> None:
        self._pool = pool

    def run(self, function: Callable[[A], R], arguments: Sequence[A]) -> Iterator[R]:
        try:
            for found in self._pool.map(_caught, itertools.repeat(function), arguments):
                yield _result(found)
        except concurrent.futures.process.BrokenProcessPool:
            raise RuntimeError("a worker ended in the middle of its task; was it killed, or is "
                               "the memory too small for so many workers?") from None


class _Ray:
    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def run(self, function: Callable[[A], R], arguments: Sequence[A]) -> Iterator[R]:
        remote = self._ray.remote(_caught)
        waiting = [remote.remote(function, argument) for argument in arguments]
        try:
            for one in waiting:
                yield _result(self._ray.get(one))
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"a task of Ray failed: {type(cause).__name__}: "
                               f"{first_line(cause)}") from None
        finally:
            for one in waiting:
                self._ray.cancel(one, force=True)


def _caught(function: Callable[[A], R], argument: A) -> tuple[R | None, str | None]:
    """A refusal travels as its line: each engine wraps exceptions in its own way."""
    try:
        return function(argument), None
    except InputError as error:
        return None, str(error)


def _result(found: tuple[Any, str | None]) -> Any:
    value, refused = found
    if refused is not None:
        raise InputError(refused)
    return value
