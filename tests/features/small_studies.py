"""Small trainings on the bundled family: real models of 0.5 M parameters, a few steps; and one to be killed.

Run as a program it trains with the options of a JSON file and dies by SIGKILL, in a process forked for each of the
given moments: before the N-th step of a dictionary, or while the N-th file is being placed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from deltasmith.lab import family_folder

SITE = "model.layers.1.mlp.down_proj:in"
FAMILY = family_folder()


def write_texts(folder: Path) -> list[str]:
    """Write two small corpora from the family's validation items; return them as words of a command."""
    words = []
    for name in ("math", "code"):
        lines = (FAMILY / f"items/validation_{name}.jsonl").read_text().splitlines()
        items = [json.loads(line) for line in lines][:60]
        texts = [json.dumps({"text": item["prompt"] + item["answer"]}) for item in items]
        (folder / f"{name}.jsonl").write_text("\n".join(texts))
        words.append(f"{name}={folder / name}.jsonl")
    return words


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return options of `train` for base → math, code → their mean, a recipe; half a second a member."""
    folder.mkdir(exist_ok=True)
    entries = [{"model": str(FAMILY / "small" / name), "label": name} for name in ("math", "code")]
    recipe = {"base": str(FAMILY / "base"), "models": entries, "merge": "mean"}
    (folder / "merged.yaml").write_text(yaml.safe_dump(recipe))
    models = [f"base={FAMILY / 'base'}", *(f"{e['label']}={e['model']}" for e in entries)]
    return {
        "models": [*models, f"merged={folder / 'merged.yaml'}"],
        "site": SITE,
        "corpora": write_texts(folder),
        "out": str(folder / "study"),
        "latents": 48,
        "k": 4,
        "steps": 12,
        "child_steps": 6,
        "batch": 64,
        "held_out_tokens": 600,
        "threads": 1,
    } | changes


def light_options(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return options of `train` for base → math alone: base, base~again, base~seed1, math."""
    given = options(folder)
    return (
        given
        | {"models": given["models"][:2], "parents": ["math=base"], "steps": 6, "child_steps": 3}
        | changes
    )


def kill_at(moments: list[tuple[str, int]], given: dict[str, Any]) -> None:
    """Train in a forked process for each moment, which kills itself there."""
    import transformers.models.llama.modeling_llama  # noqa: F401 - once here, not in every process

    import deltasmith.features.running  # noqa: F401
    from deltasmith.features.dictionaries.trainer import Trainer
    from deltasmith.features.training import train
    from deltasmith.formats.staging import Staging

    def deadly(what: str, count: int) -> Callable[..., Any]:
        owner, name = {"step": (Trainer, "step"), "place": (Staging, "place")}[what]
        inner, calls = getattr(owner, name), [0]

        def call(*arguments: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == count:
                if what == "place":
                    path = arguments[0].partial / (arguments[1] + ".tmp")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*arguments, **more)

        setattr(owner, name, call)
        return call

    for what, count in moments:
        child = os.fork()
        if child == 0:
            deadly(what, count)
            train(**given)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(what, count, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    kill_at([tuple(moment) for moment in told["moments"]], told["options"])
