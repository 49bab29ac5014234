"""What can be told before anything is trained: whether it fits, and what a given dictionary was made for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltasmith.analysis.free_memory import free_on_device, require_room
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.features.dictionaries import storage
from deltasmith.features.pieces import Pieces
from deltasmith.features.requests import Request
from deltasmith.features.site import Site

if TYPE_CHECKING:
    from deltasmith.features.models import Opened

__all__ = ["check_context", "notes_of_given", "notes_of_repeats", "require_memory"]

_OFTEN = 10
"""From so many times on that a training token is seen, a dictionary may learn it by heart."""


def require_memory(request: Request, width: int) -> None:
    """Raise ResourceError where training the largest dictionary of a study will not fit on the device.

    The latents are those that the options ask for on a site of this width; a given dictionary has its own.
    """
    given = request.root_dictionary
    latents = request.latents_of(width) if given is None else storage.load(given).latents
    largest = latents + (round(request.spare * latents) if request.mode == "warm" else 0)
    # Encoder and decoder are (latents, width) float32 each, and there are five of both: the dictionary that training
    # begins with, the weights in training, the two moments of Adam, and a gradient or the finished copy. Besides, one
    # batch of pre-activations, (batch, latents) float32.
    needed = 4 * (5 * 2 * largest * width + request.batch * largest)
    require_room(
        needed,
        free_on_device(request.device),
        where="",
        what=f"training a dictionary of {largest:,} latents on a width of {width:,}",
        fix="give fewer --latents, or a smaller --batch",
    )


def check_context(context: int, opened: Opened, where: str = "--context") -> None:
    """Raise RecipeError where texts are to be read in longer pieces than the model takes."""
    if opened.context is not None and context > opened.context:
        raise RecipeError(
            f"pieces of {context:,} tokens are longer than the {opened.context:,} that {printable(opened.name)} reads",
            where=printable(where),
            fix=f"give --context {opened.context} or less",
        )


def notes_of_given(request: Request, opened: Opened) -> list[str]:
    """Tell where the root's given dictionary was made for something else, as far as its cfg.json says.

    RefusedError where this package trained it at another site. Another model, or another module in what SAELens saved,
    is a note: features may carry over, and measured quality will show it.
    """
    folder, site = request.root_dictionary, Site.parse(request.site)
    if folder is None:
        return []
    told = storage.metadata(folder)
    ours = told.get("deltasmith")
    known: dict[str, Any] = ours if isinstance(ours, dict) else {}
    trained_at, fingerprint = known.get("site"), known.get("model_fingerprint")
    if isinstance(trained_at, str) and trained_at.strip() != str(site):
        raise RefusedError(
            f"the root's dictionary was trained at {printable(trained_at)}, not at {site}",
            where=printable(str(folder)),
            fix=f"give --site {printable(trained_at)}, or another dictionary",
        )
    notes = []
    if isinstance(fingerprint, str) and fingerprint != opened.fingerprint:
        notes.append(
            f"the root's dictionary was trained on {_model(told, folder)}, and serves {opened.name} as it is"
        )
    module = told.get("hook_name")
    if trained_at is None and isinstance(module, str) and module != site.module and _has(opened, module):
        notes.append(f"the root's dictionary was trained at {printable(module)}, and serves {site} as it is")
    return notes


def notes_of_repeats(text: Pieces, steps: int, batch: int) -> list[str]:
    """Tell where training goes over the same text so often that it may learn it by heart."""
    _, firsts = np.unique(text.piece, return_index=True)  # the smaller corpora are repeated within the text
    different = int(text.analysed[firsts].sum())
    times = steps * batch / max(1, different)
    if times <= _OFTEN:
        return []
    return [
        f"training sees each of the {different:,} different tokens about {times:,.0f} times; more text, or fewer "
        f"--steps, would make features that hold elsewhere"
    ]


def _model(told: dict[str, Any], folder: Path) -> str:
    name = told.get("model_name")
    return printable(name) if isinstance(name, str) and name else f"another model ({printable(folder.name)})"


def _has(opened: Opened, module: str) -> bool:
    return any(name == module for name, _ in opened.network.named_modules())
