"""A folder of results: it appears whole or not at all, and never over anything but an earlier one of its kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from deltasmith.errors import RefusedError, printable
from deltasmith.formats.claim import resolve_output
from deltasmith.formats.system import exchange, resource_error, sync_folder

__all__ = ["REPORT", "Contents", "check_report_folder", "report_folder"]


@dataclass(frozen=True)
class Contents:
    """Tell a folder of one kind: it holds the file `mark`, and nothing but names like those in `names`."""

    what: str
    mark: str
    names: tuple[str, ...]


REPORT = Contents("a report", "report.json", ("*.json", "*.png"))


def check_report_folder(out: Path, *, overwrite: bool, contents: Contents = REPORT) -> None:
    """Raise RefusedError unless `out` may be created, or with `overwrite` replaced because it is of the same kind."""
    if not os.path.lexists(out):
        return
    where = printable(str(out))
    if not out.is_dir():
        raise RefusedError("the output exists and is a file", where=where, fix="choose another output")
    names = sorted(entry.name for entry in out.iterdir())
    if not names:
        return
    if not overwrite:
        raise RefusedError(
            "the output exists and is not empty",
            where=where,
            fix="choose another output, or replace it with --overwrite",
        )
    strangers = [name for name in names if not any(fnmatchcase(name, known) for known in contents.names)]
    if strangers or contents.mark not in names:
        what = printable(strangers[0], 80) if strangers else f"no {contents.mark}"
        raise RefusedError(
            f"the output to be replaced is no folder of {contents.what} (it holds {what})",
            where=where,
            fix="choose another output, or move that folder away yourself",
        )


@contextmanager
def report_folder(out: Path, *, overwrite: bool = False, contents: Contents = REPORT) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place at the end, or is gone after an error.

    Raises:
        RefusedError: see `check_report_folder`. ResourceError: it cannot be written.
    """
    out = resolve_output(out)
    check_report_folder(out, overwrite=overwrite, contents=contents)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as cause:
        raise resource_error(cause, partial) from cause
    try:
        yield partial
        check_report_folder(out, overwrite=overwrite, contents=contents)
        sync_folder(partial)
        _put(partial, out)
        sync_folder(out.parent)
    except OSError as cause:
        raise resource_error(cause, cause.filename or out) from cause
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; what is there goes where `partial` was, and with it."""
    if not (out.is_dir() and any(out.iterdir())):
        partial.rename(out)
    elif not exchange(partial, out):
        shutil.rmtree(out)
        partial.rename(out)
