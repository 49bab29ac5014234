"""Names that stand for models on the Hugging Face hub: fetched into its cache, pinned to a commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deltasmith.errors import DamagedInputError, printable

__all__ = ["PATTERNS", "Resolved", "looks_like_id", "resolve"]

PATTERNS = (
    "*.safetensors",
    "*.json",
    "tokenizer*",
    "*.model",
    "*.txt",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
"""What is fetched of a repository: no pickles, no code."""

_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a source lies on this machine, what to call it, and which commit it is.

    `name` is the hub's id, or the last part of a local path: never an absolute path. `revision` is a commit
    of the hub, None for local paths.
    """

    path: Path
    name: str
    revision: str | None = None


def looks_like_id(source: str) -> bool:
    """Tell whether `source` has the form owner/name or owner/name@revision.

    >>> looks_like_id("mistralai/Mistral-7B-v0.1@main"), looks_like_id("./base"), looks_like_id("base")
    (True, False, False)
    """
    found = _ID.fullmatch(source)
    return found is not None and ".." not in source and "--" not in found["id"]


def resolve(source: str, relative_to: Path | None = None, *, offline: bool = False) -> Resolved:
    """Find a model: a local path, which wins, or else a repository of the hub, fetched if need be.

    Relative paths start at `relative_to` (default: the working directory). With `offline`, only what the
    cache holds is used.

    Raises:
        DamagedInputError: there is no such path, and no such repository could be fetched.
    """
    local = _local(source, relative_to if relative_to is not None else Path()) if source else None
    if local is not None:
        return Resolved(local, _own_name(local))
    if not looks_like_id(source):
        raise DamagedInputError(
            f"nothing lies at {source!r}" if source else "the name is empty",
            fix="check the path; models on the hub are named owner/name",
        )
    found = _ID.fullmatch(source)
    assert found is not None  # looks_like_id has seen it match
    folder = _fetch(found["id"], found["revision"], offline)
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return Resolved(folder, found["id"], commit)


def _local(source: str, relative_to: Path) -> Path | None:
    """Return the path that `source` names, or None if nothing is there."""
    try:
        path = relative_to / Path(source).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # RuntimeError: no home for ~
        return None
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise DamagedInputError(
            f"the path cannot be used ({reason})", where=printable(source), fix="check the path"
        ) from cause
    return path


def _own_name(path: Path) -> str:
    """Return the last part of a path, of its real path for names like `.`."""
    return path.name if path.name not in ("", "..") else path.resolve().name or "root"


def _fetch(name: str, revision: str | None, offline: bool) -> Path:
    """Fetch a repository into the cache and return its snapshot folder."""
    # Imported here: the hub client takes a while, and most runs need none.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(PATTERNS), local_files_only=offline
        )
    except (
        Exception
    ) as cause:  # a boundary: the client raises its own errors, those of its HTTP library, and OSError
        what, fix = _explain(cause, offline)
        at = f"{name}@{revision}" if revision else name
        raise DamagedInputError(f"{what} (and there is no such local path)", where=at, fix=fix) from cause
    return Path(folder)


def _explain(cause: Exception, offline: bool) -> tuple[str, str]:
    """Say what went wrong with a download and what to do, by the kind of the error and not by its text."""
    from huggingface_hub import errors

    if isinstance(cause, errors.GatedRepoError):
        return (
            "the hub gives this model only to those who accepted its terms",
            "accept them there and set HF_TOKEN",
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private", "check the id, or set HF_TOKEN"
    if isinstance(cause, errors.RevisionNotFoundError):
        return "the hub has no such revision", "check what follows the @"
    if isinstance(cause, errors.HFValidationError):
        return "this is no id that the hub could have", "check the path or the id"
    if isinstance(cause, errors.LocalEntryNotFoundError) and offline:
        return (
            "the model is not in the cache and --offline forbids to fetch it",
            "fetch it first, without --offline",
        )
    if isinstance(cause, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            "the model is not in the cache and the hub cannot be reached",
            "check the network or HF_HUB_OFFLINE",
        )
    if isinstance(cause, errors.HfHubHTTPError):
        status = getattr(cause.response, "status_code", "an error")
        return f"the hub answered with {status}", "try again later; what was fetched is kept"
    return f"the model cannot be fetched ({type(cause).__name__})", "check the network, the disk and the id"
