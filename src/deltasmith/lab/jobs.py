"""Jobs of the lab: several at once in processes of their own, announced as they finish."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

from deltasmith.errors import DamagedInputError, MissingExtraError
from deltasmith.lab.rows import Row, load_results

__all__ = ["collected", "finish", "refuse_absent", "require_transformers"]


class _Job(Protocol):
    @property
    def part(self) -> str: ...


class _Experiment(_Job, Protocol):
    @property
    def experiment(self) -> str: ...


J = TypeVar("J", bound=_Job)


def finish(
    todo: Sequence[J],
    fresh: Sequence[J],
    work: Callable[[J, Path], None],
    parts: Path,
    *,
    at_once: int,
    say: Callable[[str], None],
) -> None:
    """Do `work(job, parts)` for the `fresh` ones of the jobs `todo`, `at_once` of them at a time.

    The work writes the job's part; what one raises ends the run, with the parts that are finished left for the next.
    """
    say(f"{len(todo)} jobs, {len(todo) - len(fresh)} of them done before")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=at_once, mp_context=context) as pool:
        running = {pool.submit(work, job, parts): job for job in fresh}
        for done in as_completed(running):
            done.result()
            say(f"{running[done].part} done")


def collected(todo: Sequence[_Experiment], parts: Path) -> tuple[Row, ...]:
    """Return the rows of all parts in the order of the jobs, each with the name of its experiment."""
    return tuple(
        Row({"experiment": job.experiment, **row.keys}, row.task, row.right)
        for job in todo
        for row in load_results(parts / job.part).rows
    )


def require_transformers(extra: str) -> None:
    """Raise MissingExtraError, naming the extra, unless torch and transformers are installed."""
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise MissingExtraError(f"{missing[0]} is not installed", fix=f'pip install "deltasmith[{extra}]"')


def refuse_absent(family: Path, files: Iterable[Path], command: str) -> None:
    """Refuse a family that lacks one of the files; `command` builds it."""
    for path in files:
        if not path.is_file():
            raise DamagedInputError(
                f"the family has no {path.relative_to(family)}",
                where=str(family),
                fix=f"build it with `deltasmith lab {command}`",
            )
