"""Train the dictionaries of a graph of models, and write all that matching and the report will need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltasmith.engine.workers import Stop
from deltasmith.features.lineage import lineage_of
from deltasmith.features.requests import DEFAULT_BUFFER, Floors, Kind, Listener, Request, silent
from deltasmith.features.study import Mode, Study

__all__ = ["train"]


def train(
    models: Sequence[str],
    *,
    site: str,
    corpora: Sequence[str],
    out: str | Path,
    parents: Sequence[str] = (),
    mode: Mode = "warm",
    kind: Kind | None = None,
    latents: int | str | None = None,
    k: int | None = None,
    l1: float | None = None,
    steps: int = 12_000,
    child_steps: int | None = None,
    batch: int = 512,
    context: int | None = None,
    held_out_tokens: int = 100_000,
    train_tokens: int | None = None,
    spare: float = 0.125,
    seed: int = 0,
    seeds: int = 1,
    floors: Floors = "root",
    root_dictionary: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    memory: int = DEFAULT_BUFFER,
    threads: int | None = None,
    overwrite: bool = False,
    checkpoint_seconds: float = 60.0,
    say: Listener = silent,
    stop: Stop | None = None,
) -> Study:
    """Fit a sparse dictionary to what flows through one place of every model, and write a study.

    `models` are LABEL=SOURCE, or one YAML file (`lineage.lineage_of`; `parents` likewise); the first that has no
    parents is the root. All read the same text, `corpora` of NAME=PATH, as many tokens of each; `held_out_tokens` of
    them are never trained on, and codes, losses and effects are taken there. `site` is MODULE:in or MODULE:out.

    A dictionary has `latents` (a number, or a multiple of the width such as "8x"; default 8x, 4x below a width of
    512) and lets `k` of them fire on a token (default 32 from a width of 768, 16 from 256, else 8), or with `kind`
    relu-l1 as many as the penalty `l1` leaves. It takes `steps` steps of `batch` activations. What the k of
    `batch-topk` becomes once trained, one threshold, is set on pieces of the training text that no step sees.

    `mode` warm: a child's dictionary begins as that of `Graph.start_of`, with `spare` fresh latents after the parent's
    and `child_steps` steps (a sixth of `steps`); independent: every one afresh; shared: the root's, or
    `root_dictionary`, serves all. `floors` says which models get second dictionaries: `~again` (mode warm) and
    `~seed1` … `~seedN` for N = `seeds`. Every member has a seed of its own, made of `seed` and its name, so it is
    the same whatever other models there are.

    `memory` bounds the activations that are kept; where the text has more they are computed again, which changes no
    number. The result is the same, byte for byte, on one machine with the same number of threads, whether or not it
    was interrupted: a member in training is saved every `checkpoint_seconds`, and finished members are kept for a
    study repeated with the same settings and text, even where it has other models.

    Raises:
        RecipeError: an option makes no sense, there is no such site, or nothing tells where a model comes from.
        MissingExtraError: torch or transformers is missing. RefusedError: the output may not be written, the models
        do not number texts alike or their sites have other widths, or something is not finite.
        DamagedInputError: a model, a corpus or a dictionary cannot be read. ResourceError: memory or disk do not
        suffice. InterruptedRunError: asked to stop; the same call goes on.
    """
    request = Request(
        models=tuple(models),
        site=site,
        corpora=tuple(corpora),
        out=Path(out),
        parents=tuple(parents),
        mode=mode,
        kind=kind,
        latents=latents,
        k=k,
        l1=l1,
        steps=steps,
        child_steps=child_steps,
        batch=batch,
        context=context,
        held_out_tokens=held_out_tokens,
        train_tokens=train_tokens,
        spare=spare,
        seed=seed,
        seeds=seeds,
        floors=floors,
        root_dictionary=None if root_dictionary is None else Path(root_dictionary),
        device=device,
        dtype=dtype,
        memory=memory,
        threads=threads,
        overwrite=overwrite,
        checkpoint_seconds=checkpoint_seconds,
    )
    request.check_output(_places(models))
    _require_extra(request)
    lineage = lineage_of(request.models, request.parents)
    request.check_output([Path(str(node.source)) for node in lineage.graph.nodes])
    from deltasmith.features.running import carry_out
    from deltasmith.features.threads import computing_with

    with computing_with(request.threads):
        return carry_out(request, lineage, say, stop or Stop())


def _places(models: Sequence[str]) -> list[Path]:
    """Return what of the command's words lies on this machine."""
    words = [Path(word.partition("=")[2] or word).expanduser() for word in models]
    return [path for path in words if path.exists()]


def _require_extra(request: Request) -> None:
    from deltasmith.evaluate.models.transformers_loading import check_device, require_transformers

    require_transformers("training dictionaries", "features")
    check_device(request.device)
