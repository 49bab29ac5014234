"""`features sweep`: a recipe merged in memory at every value of a parameter, seen through the root's dictionary.

Nothing is trained, so a value takes seconds. What the root's dictionary has no latent for cannot be seen: features that
only a fine-tune has stay hidden, and the share of activations left unexplained (FVU) tells how much that may be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltasmith import __version__, api
from deltasmith.analysis.ends import Source, is_random, resolve
from deltasmith.analysis.sweep_axes import Plane, Value
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RecipeError, RefusedError, printable
from deltasmith.evaluate.journal import Answers, Journal, Key
from deltasmith.features.codes import Codes
from deltasmith.features.comparing import Comparison, Passages, compare
from deltasmith.features.matching.thresholds import Thresholds
from deltasmith.features.patterns import study_hash
from deltasmith.features.study import Study
from deltasmith.features.sweep_measures import (
    Scores,
    chosen,
    experts_of,
    kept_of,
    mean_accuracy,
    origins_of,
    recovered_accuracy,
    recovered_loss,
    smallest,
)
from deltasmith.features.sweep_models import Seen, Viewer
from deltasmith.features.sweep_records import (
    Baseline,
    ParentModel,
    Sweep,
    SweepPoint,
    point_of,
    write_sweep,
)
from deltasmith.features.sweep_requests import ParentSource, check_place, name_of, parents_of, read_axis
from deltasmith.recipe.model import Recipe

__all__ = ["RESAMPLES", "Say", "sweep"]

RESAMPLES = 200
Say = Callable[[str, int, int], None]


def sweep(
    study: str | Path | Study,
    recipe: Source,
    *,
    vary: str,
    out: str | Path | None = None,
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    strong: float = 0.8,
    weak: float = 0.5,
    min_fires: int = 20,
    resamples: int = RESAMPLES,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    overwrite: bool = False,
    say: Say = lambda what, done, of: None,
    stop: Stop | None = None,
) -> Sweep:
    """Merge a recipe in memory at every value of one parameter, and tell what became of features there.

    `vary` is NAME=LOW:HIGH:STEP or NAME=A|B|C; names are those of `sweep_axes.read_plane` (a field of an operation,
    `scale`, `weight`, a path). At every value the activations at the study's site are encoded with the dictionary of
    the study's root, and matched with those of the root and of each parent, as `match` does; loss and next-token
    accuracy are taken per domain of the held-out text. Parents are the recipe's models before their edits, called as
    in the study where their fingerprint is one of its models'. `models`, LABEL=SOURCE, names parents instead: each
    must be the study's model of that label.

    Two values are told apart: the best mean accuracy, and the largest smallest recovered fraction, over the domains in
    which a parent is better than the root. The mean prefers whatever domain gains most.

    The file `out` is written whole; points already finished by an interrupted call are kept beside it until then. With
    `resamples` draws of the passages, keyed by `seed`, shares get 95 % intervals. The result depends on neither
    threads nor interruptions.

    Raises:
        RecipeError: the recipe holds not together at some value, or more than one parameter varies.
        RefusedError: the output exists, a model is not the study's, or no value can be computed.
        DamagedInputError: a study or a model is damaged. MissingExtraError: torch or transformers is missing.
        InterruptedRunError: asked to stop; the same call goes on.
    """
    opened = study if isinstance(study, Study) else Study.open(study)
    thresholds = Thresholds(strong, weak, min_fires)
    if resamples < 0:
        raise RecipeError(f"{resamples} resamples cannot be drawn", fix="choose 0 or more")
    place = None if out is None else Path(out)
    if place is not None:
        check_place(place, overwrite=overwrite)
    plane = read_axis(recipe, vary, overrides)
    parents = parents_of(opened, plane, models)
    _require_extra(device)
    stopper = stop or Stop()
    passages = Passages.of(opened.held_out.passage, seed, resamples)
    viewer = Viewer(opened, device, dtype, memory, threads, stopper)
    run = _Run(
        opened,
        plane,
        name_of(recipe),
        parents,
        viewer,
        thresholds,
        passages,
        threads or api.available_threads(),
        {"device": device, "dtype": dtype, "resamples": resamples, "seed": seed},
        say,
        stopper,
    )
    if place is None:
        return run.walk(None)
    return run.kept(place)


@dataclass(eq=False)
class _Run:
    """One sweep at work."""

    study: Study
    plane: Plane
    recipe: str
    parents: Sequence[ParentSource]
    viewer: Viewer
    thresholds: Thresholds
    passages: Passages
    threads: int
    settings: Mapping[str, Any]
    say: Say
    stop: Stop
    codes: dict[str, Codes] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    fvu: dict[str, float | None] = field(default_factory=dict)
    models: list[ParentModel] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    lost_in: dict[str, Comparison] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """Return the label of the study's root."""
        return self.study.graph.root.label

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the domains that have held-out text."""
        return tuple(name for name in self.study.domains if name in self.study.scores[self.root])

    def kept(self, out: Path) -> Sweep:
        """Walk with finished points kept beside `out`, then write it."""
        with Journal.open(out.with_name(out.name + ".journal")) as journal:
            self._baselines()
            key = self._key()
            found = self.walk(journal.answers(key))
            write_sweep(out, found)
            journal.discard([key])
        return found

    def walk(self, answers: Answers | None) -> Sweep:
        """Visit every value."""
        if not self.codes:
            self._baselines()
        axis, total = self.plane.axes[0], len(self.plane)
        parents = {model.label: self.scores[model.label] for model in self.models}
        experts = experts_of(self.scores[self.root], parents, self.domains)
        points = []
        for at, values in enumerate(self.plane.points()):
            self.say("values", at, total)
            points.append(self._point(values[axis.name], self.plane.recipe(values), experts, answers))
        self.say("values", total, total)
        if all(point.refused for point in points):
            raise RefusedError(f"the recipe can be computed at no value: {points[0].refused}")
        self._note_the_rest(experts)
        return self._found(points, experts)

    def _baselines(self) -> None:
        """See the parents through the root's dictionary; the root's own codes are in the study."""
        known = {str(m["fingerprint"]): label for label, m in self.study.document.get("models", {}).items()}
        sights: dict[str, Seen] = {}
        for at, parent in enumerate(self.parents):
            self.say("parents", at, len(self.parents))
            self._check()
            seen = self.viewer.look(parent.end.source)
            label = known.get(seen.fingerprint)
            if parent.promised and label != parent.label:
                raise RefusedError(
                    f"{printable(parent.end.name)} is not the model that the study calls {printable(parent.label)}",
                    fix="name the model that the study was trained on",
                )
            self.note(*seen.notes)
            name = label if label is not None else self._free(parent.label)
            if name in sights:
                self.note(f"{name} is merged more than once; it is followed as one parent")
                continue
            self.models.append(ParentModel(name, printable(seen.name), label is not None))
            sights[name] = seen
        self.say("parents", len(self.parents), len(self.parents))
        self._see_root(known, sights)
        for name, seen in sights.items():
            if name != self.root:
                self._keep(name, seen)
                self.lost_in[name] = self._compare(self.codes[self.root], seen.codes)
        self.fingerprints = {name: seen.fingerprint for name, seen in sights.items()}

    def _see_root(self, known: Mapping[str, str], sights: Mapping[str, Seen]) -> None:
        """Take the root's codes from the study, unless other models are not seen on quite the same text as it was."""
        root = self.root
        self.codes[root], self.scores[root] = self.study.codes(root), self.study.scores[root]
        self.fvu[root] = self.study.members[root].quality.fvu
        if not self.viewer.stand_ins:
            return
        recipe = self.plane.recipe(next(self.plane.points()))
        again = sights.get(root)
        if again is None and recipe.base is not None:
            again = self.viewer.look(resolve(recipe, recipe, "base").start.source)
        if again is not None and known.get(again.fingerprint) == root:
            self._keep(root, again)
            return
        self.note(
            f"the tokenizer has no token that begins a text: {self.viewer.stand_ins} pieces of the held-out text begin "
            f"otherwise than when {root} read them, and shares of its features come out a little too low"
        )

    def _keep(self, name: str, seen: Seen) -> None:
        self.codes[name], self.scores[name], self.fvu[name] = seen.codes, seen.scores, seen.fvu

    def _point(
        self, value: Value, recipe: Recipe, experts: Mapping[str, str | None], answers: Answers | None
    ) -> SweepPoint:
        """See the merge at one value, or remember what an earlier run saw."""
        self._check()
        request = hashlib.sha256(repr((value, api.plan(recipe).hash)).encode()).hexdigest()
        told = None if answers is None else answers.get(request)
        if told is not None:
            self.note(*told["notes"])
            return point_of(told["point"])
        try:
            seen = self.viewer.look(recipe)
        except RefusedError as cause:  # one value may overflow where others do not
            return SweepPoint(value, {}, None, None, {}, None, {}, {}, None, None, refused=str(cause))
        point = self._measured(value, seen, experts)
        self.note(*seen.notes)
        if answers is not None:
            answers.put(request, {"point": asdict(point), "notes": list(seen.notes)})
        return point

    def _measured(self, value: Value, seen: Seen, experts: Mapping[str, str | None]) -> SweepPoint:
        into = {label: self._compare(codes, seen.codes) for label, codes in self.codes.items()}
        labels = [model.label for model in self.models]
        ground, theirs = self.scores[self.root], {label: self.scores[label] for label in labels}
        recovered = recovered_accuracy(seen.scores, ground, theirs, experts)
        return SweepPoint(
            value=value,
            scores=dict(seen.scores),
            fvu=seen.fvu,
            l0=len(seen.codes.latents) / max(seen.codes.tokens, 1),
            kept={label: kept_of(found) for label, found in into.items()},
            origins=origins_of(labels, self.root, into, self.lost_in),
            recovered=recovered,
            recovered_loss=recovered_loss(seen.scores, ground, theirs, experts),
            mean_accuracy=mean_accuracy(seen.scores, experts),
            smallest_recovered=smallest(recovered),
        )

    def _found(self, points: Sequence[SweepPoint], experts: Mapping[str, str | None]) -> Sweep:
        baselines = {
            label: Baseline(
                dict(self.scores[label]),
                self.fvu[label],
                None if label == self.root else kept_of(self.lost_in[label]),
            )
            for label in self.codes
        }
        return Sweep(
            study=study_hash(self.study),
            site=self.study.site,
            recipe=self.recipe,
            axis=self.plane.axes[0].name,
            values=self.plane.axes[0].values,
            root=self.root,
            parents=tuple(self.models),
            thresholds=asdict(self.thresholds),
            resamples=self.passages.resamples,
            domains=self.domains,
            experts=experts,
            baselines=baselines,
            points=tuple(points),
            best_mean=chosen(points, "mean_accuracy"),
            best_smallest=chosen(points, "smallest_recovered"),
            notes=tuple(self.notes),
        )

    def note(self, *notes: str) -> None:
        """Keep notes, each once."""
        self.notes |= dict.fromkeys(notes)

    def _note_the_rest(self, experts: Mapping[str, str | None]) -> None:
        """Note what a reader of the figures must know, and cannot see."""
        self.note(*self.plane.notes)
        strangers = [model.label for model in self.models if not model.in_study]
        if strangers:
            self.note(f"not in the study: {', '.join(strangers)}")
        if not any(experts.values()):
            self.note("no parent is more accurate than the root in any domain: there is nothing to recover")
        first = self.plane.recipe(next(self.plane.points()))
        if is_random(first) and self.plane.axes[0].name != "seed":
            self.note(f"the edits are random, and the whole sweep is one draw of them (seed {first.seed})")
        if self.settings["resamples"] and not self.passages.resamples:
            self.note("the held-out text is one passage: there are no intervals")

    def _compare(self, parent: Codes, child: Codes) -> Comparison:
        return compare(
            parent,
            child,
            self.passages,
            self.thresholds,
            threads=self.threads,
            stopped=lambda: self.stop.asked,
        )

    def _free(self, label: str) -> str:
        """Return a name that no model of the study has."""
        while label in self.study.graph.by_label:
            label += "'"
        return label

    def _check(self) -> None:
        if self.stop.asked:
            raise InterruptedRunError("the sweep was interrupted", fix="run the same command again")

    def _key(self) -> Key:
        """Name everything that decides a point, besides its recipe."""
        parts = [self.fingerprints, asdict(self.thresholds), self.settings, __version__]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return Key(study_hash(self.study), "torch", "features sweep", digest)


def _require_extra(device: str) -> None:
    from deltasmith.evaluate.models.transformers_loading import check_device, require_transformers

    require_transformers("sweeping features", "features")
    check_device(device)
