"""Base and experts → a folder that holds their mixture: streamed, one matrix at a time, whole or not there."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from deltasmith import __version__
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import MissingExtraError, RecipeError, RefusedError, printable
from deltasmith.formats.card import CARD_NAME, Parent, licence_of, model_card
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.fp8 import Dequantised
from deltasmith.formats.json_file import read_json_object
from deltasmith.formats.layout import Layout, plan_layout
from deltasmith.formats.manifest import Lineage, Manifest, TensorRecord
from deltasmith.formats.output import Output
from deltasmith.formats.publish import CONFIG_NAME, side_files
from deltasmith.recipe.publication import input_record
from deltasmith.recipe.yaml_file import to_yaml
from deltasmith.table.names import matches
from deltasmith.upscaling.examples import RouterReport
from deltasmith.upscaling.examples import router_data as checked_data
from deltasmith.upscaling.factors import splitter
from deltasmith.upscaling.inputs import Inputs, open_inputs
from deltasmith.upscaling.job import Job, check_stop
from deltasmith.upscaling.router_job import RouterJob, prepare_router
from deltasmith.upscaling.settings import Settings, config_document, weights_of

if TYPE_CHECKING:
    from deltasmith.upscaling.skeleton import Place

__all__ = ["Upscaled", "upscale"]

_SHARD = 5 << 30
_NAMES = ("linears", "embeddings", "norms")
_LOADING = """
## Loading

transformers knows this kind of model only after `import deltasmith.upscaling.auto` (`pip install "deltasmith[hf]"`):

```python
import deltasmith.upscaling.auto
from transformers import AutoModelForCausalLM  # or the Auto class that the base needs

model = AutoModelForCausalLM.from_pretrained(".")  # this folder
```
"""


@dataclass(frozen=True)
class Upscaled:
    """What was written: sizes in parameters and bytes, how many linears are mixtures, what was left out.

    `router` tells how a trained router does.
    """

    out: str
    experts: tuple[str, ...]
    linears: int
    parameters: int
    base_parameters: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = field(default=())
    router: RouterReport | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        found = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        return {**found, "router": None if self.router is None else self.router.as_json()}


def upscale(
    base: str | Path,
    experts: Sequence[str | Path],
    out: str | Path,
    *,
    preset: str = "smile",
    router_rank: int = 8,
    expert_rank: int = 64,
    top_k: int | None = None,
    density: float = 0.1,
    shared_scale: float = 0.3,
    where: str = "*",
    labels: Sequence[str] | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    router_data: Mapping[str, Sequence[str]] | None = None,
    router_epochs: int = 50,
    router_seed: int = 0,
    shard_size: int = _SHARD,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Upscaled:
    """Write a mixture of a base and low-rank experts to `out`; no data and no training.

    Every linear under a layer number whose weight `where` matches becomes the base's plus each expert's delta cut to
    `expert_rank` (-1: whole), weighed for each token by a gate of `router_rank` directions per expert; the `top_k`
    best count (default 1). Everything else is the base's. The preset `twin` puts base + shared_scale · Σ δ in the
    base's place for every tensor, what an expert differs from that in the experts' places, cut to int(density ·
    min(out, in)) triplets instead of to `expert_rank`, and lets all experts count (top_k: all of them).
    `weights` overrule the gates until a caller sets others. `router_data` holds example inputs of each expert by
    label: a router is trained on them (`twin` only) which weighs the experts for each row of a batch, in place of
    the gates; the shared expert is held in memory for it. `device` is where singular values and that are computed.

    Raises:
        RecipeError: numbers out of range, by name. MissingExtraError: torch or transformers are not installed.
        RefusedError: models that do not fit together, a router rank that a linear has not, an output that exists.
        DamagedInputError: what cannot be opened, or an architecture that transformers does not know.
        InterruptedRunError: `stop` was asked; the same call resumes.
    """
    began = time.perf_counter()
    _require_transformers()
    if preset not in ("smile", "twin"):
        raise RecipeError(f"there is no preset {printable(preset)!r}", fix="use smile or twin")
    inputs = open_inputs(base, experts, labels)
    names = tuple(expert.label for expert in inputs.experts)
    settings = _settings(names, preset, router_rank, expert_rank, density, top_k, weights)
    router = None
    if router_data is not None:
        data = checked_data(router_data, names, seed=router_seed, epochs=router_epochs)
        router = prepare_router(inputs, settings, data)
        settings = replace(settings, router=router.shape)
    scale = shared_scale if preset == "twin" else 0.0
    job = _plan(inputs, settings, scale, where, progress or Silent(), stop or Stop())
    added = [*job.added(), *([] if router is None else router.added())]
    layout = plan_layout([*inputs.specs.values(), *added], shard_size)
    stamp = _stamp(inputs, settings, job, layout, {} if router is None else router.data.as_json())
    with Output.open(
        Path(out),
        layout,
        stamp,
        overwrite=overwrite,
        inputs=[Path(s.path) for _, m in inputs.opened() for s in m.files],
    ) as output:
        report, notes = _written(output, layout, job, router, Path(out).name, device)
    return Upscaled(
        str(out),
        names,
        len(job.settings.linears),
        sum(spec.size for spec in layout.specs.values()),
        sum(spec.size for spec in inputs.specs.values()),
        layout.nbytes,
        time.perf_counter() - began,
        notes,
        report,
    )


def _written(
    output: Output, layout: Layout, job: Job, router: RouterJob | None, name: str, device: str
) -> tuple[RouterReport | None, tuple[str, ...]]:
    """Train the router if there is one, write every tensor and publish; return its training and all notes."""
    report, inputs = None, job.inputs
    if router is not None:
        trained, report = router.train(job, device)
        router.write(output, trained)
        job = replace(job, notes=(*job.notes, *router.notes(report)))
    job.write(output, splitter(device))
    hashes = {label: {f.name: sha256_of(f.path) for f in m.files} for label, m in inputs.opened()}
    for _, model in inputs.opened():
        model.check_unchanged()
    recipe = _recipe(job, router, report)
    files, warnings = _beside(inputs, job.settings, name, recipe)
    notes = (*job.notes, *warnings)
    late = output.publish(files, _manifest(job, recipe, layout, output, hashes, notes))
    return report, (*notes, *late)


def _settings(
    experts: tuple[str, ...],
    preset: str,
    router_rank: int,
    expert_rank: int,
    density: float,
    top_k: int | None,
    weights: Mapping[str, float] | Sequence[float] | None,
) -> Settings:
    """Return the mixture's numbers, those of the preset among them; RecipeError if they make no sense."""
    twin = preset == "twin"
    settings = Settings(
        experts=experts,
        router_rank=router_rank,
        expert_rank=None if twin else expert_rank,
        density=density if twin else None,
        top_k=top_k if top_k is not None else len(experts) if twin else 1,
        preset=preset,
        weights=None if weights is None else weights_of(weights, experts),
    )
    settings.check()
    return settings


def _require_transformers() -> None:
    try:
        for name in ("torch", "transformers"):
            importlib.import_module(name)
    except ImportError as cause:
        raise MissingExtraError(
            f"upscaling needs torch and transformers ({cause})", fix='pip install "deltasmith[hf]"'
        ) from cause


def _plan(
    inputs: Inputs, settings: Settings, shared_scale: float, where: str, progress: Progress, stop: Stop
) -> Job:
    """Find the modules, refuse ranks that they have not, and leave out those that no expert has changed."""
    from deltasmith.upscaling.skeleton import find_places

    twin = settings.preset == "twin"
    found = [
        p for p in find_places(inputs.folder, inputs.specs) if twin or (p.kind == "linear" and p.layered)
    ]
    wanted = [place for place in found if matches(where, place.weight)]
    if not wanted:
        raise RecipeError(
            f"nothing to upscale: {printable(repr(where))} matches none of {len(found)} linears",
            fix="widen --where" if found else "use a model whose layers have linears",
        )
    _refuse_ranks(wanted, settings)
    progress.phase("comparing", 0)
    changed = [place for place in wanted if _changed(inputs, place, stop)]
    if not changed:
        raise RefusedError(
            "no expert differs from the base in what is upscaled", fix="give fine-tuned models"
        )
    settings = replace(
        settings,
        linears=_modules(changed, "linear"),
        embeddings=_modules(changed, "embedding"),
        norms=_modules(changed, "norm"),
    )
    job = Job(inputs, settings, shared_scale, tuple(changed), (), progress, stop)
    return replace(job, notes=tuple(_notes(job, wanted)))


def _modules(places: Sequence[Place], kind: str) -> tuple[str, ...]:
    return tuple(place.module for place in places if place.kind == kind)


def _refuse_ranks(places: Sequence[Place], settings: Settings) -> None:
    for place in places:
        if place.kind == "linear" and settings.router_rank > min(place.rows, place.columns):
            raise RefusedError(
                f"--router-rank {settings.router_rank} is more than the"
                f" {min(place.rows, place.columns)} directions of {printable(place.weight)}"
                f" ({place.rows} x {place.columns})",
                fix="use a smaller rank, or leave that linear out by --where",
            )


def _changed(inputs: Inputs, place: Place, stop: Stop) -> bool:
    check_stop(stop)
    names = [place.weight, *([place.bias_name] if place.bias else [])]
    return any(e.changed(inputs.checkpoint, n) > 0 for n in names for e in inputs.experts)


def _notes(job: Job, wanted: Sequence[Place]) -> Iterator[str]:
    """Say which modules stay the base's, and which of the experts' changes the mixture does not hold."""
    if same := [place.weight for place in wanted if place not in job.places]:
        one, many = ("module", "modules") if job.shared_scale else ("linear", "linears")
        stay = f"1 {one} stays" if len(same) == 1 else f"{len(same)} {many} stay"
        yield f"{stay} as in the base{_first(same)}: no expert changed {'it' if len(same) == 1 else 'them'}"
    for label, lost in job.left_out().items():
        yield _lost(label, lost, job.shared_scale > 0)
    count = len(job.settings.embeddings) + len(job.settings.norms)
    if job.settings.router is None and count:
        have = "1 embedding or norm has" if count == 1 else f"{count} embeddings and norms have"
        yield f"{have} no gate: {'it is' if count == 1 else 'they are'} mixed only by given weights"


def _lost(label: str, names: Sequence[str], shared: bool) -> str:
    one = len(names) == 1
    which = "1 tensor" if one else f"{len(names)} tensors"
    if shared:
        which += " outside what is upscaled"
        kept = "only the part in the shared expert is kept"
    else:
        which += " that is no upscaled linear" if one else " that are no upscaled linears"
        kept = "the base's is kept" if one else "the base's are kept"
    return f"{which}{_first(names)} {'was' if one else 'were'} changed by {printable(label)}; {kept}"


def _first(names: Sequence[str]) -> str:
    return f" ({printable(names[0])}{', …' if len(names) > 1 else ''})"


def _stamp(inputs: Inputs, settings: Settings, job: Job, layout: Layout, data: Mapping[str, Any]) -> str:
    """Hash everything that the output depends on."""
    whole = (__version__, settings.as_json(), job.shared_scale, layout.digest, data)
    state = xxhash.xxh3_128(repr(whole).encode())
    for label, model in inputs.opened():
        for source in model.files:
            status = Path(source.path).stat()
            state.update(repr((label, source.name, status.st_size, status.st_mtime_ns)).encode())
    return str(state.hexdigest())


def _recipe(job: Job, router: RouterJob | None, report: RouterReport | None) -> dict[str, Any]:
    """Return what was done as plain data: the numbers, and the router's data and success."""
    settings = {k: v for k, v in job.settings.as_json().items() if k not in _NAMES and v is not None}
    if job.shared_scale:
        settings["shared_scale"] = job.shared_scale
    if router is not None and report is not None:
        settings["router"] = {**settings["router"], **router.data.as_json(), "found": report.as_json()}
    return {"upscale": settings}


def _beside(
    inputs: Inputs, settings: Settings, name: str, recipe: Mapping[str, Any]
) -> tuple[dict[str, bytes | Path], tuple[str, ...]]:
    """Collect tokenizer, licences and generation config of the base, the mixture's config.json, and its card."""
    licences = {label: m.folder for label, m in inputs.opened() if m.folder is not None}
    beside = side_files(
        inputs.folder,
        inputs.folder,
        dequantised=isinstance(inputs.checkpoint, Dequantised),
        licences=licences,
    )
    config = beside.files[CONFIG_NAME]
    base = json.loads(config) if isinstance(config, bytes) else read_json_object(config)
    text = json.dumps(config_document(base, settings), indent=2, ensure_ascii=False) + "\n"
    parents = [
        Parent(
            label,
            m.name,
            "base" if label == "base" else "expert",
            "",
            licence_of(m.folder) if m.folder is not None else None,
        )
        for label, m in inputs.opened()
    ]
    shown = to_yaml(dict(recipe))
    card, warnings = model_card(name, parents, shown, merge=f"upscale:{settings.preset}", version=__version__)
    files = {**beside.files, CONFIG_NAME: text.encode(), CARD_NAME: card + _LOADING.encode()}
    return files, (*beside.warnings, *warnings)


def _manifest(
    job: Job,
    recipe: Mapping[str, Any],
    layout: Layout,
    output: Output,
    hashes: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
) -> bytes:
    inputs, copied = job.inputs, set() if job.shared_scale else set(job.inputs.specs)
    tensors = {
        name: TensorRecord(
            spec.dtype.name,
            spec.shape,
            layout.shards[layout.slots[name].shard].name,
            output.finished[name],
            "base" if name in copied else "merged",
        )
        for name, spec in layout.specs.items()
    }
    records = [input_record(label, m.name, m, hashes[label]) for label, m in inputs.opened()]
    lineage = Lineage("base", job.settings.experts, f"upscale:{job.settings.preset}")
    router: Mapping[str, Any] = recipe["upscale"].get("router", {})
    seed = int(router.get("seed", 0))
    return Manifest(__version__, dict(recipe), seed, records, lineage, tensors, tuple(notes)).encode()
