"""A study, model by model: one network in memory at a time, every finished part kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deltasmith import __version__
from deltasmith.api import available_threads
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, printable
from deltasmith.features.arrays import read_arrays
from deltasmith.features.checkpoints import Workplace, digest
from deltasmith.features.corpora import Corpora, read_corpora
from deltasmith.features.dictionaries import storage
from deltasmith.features.dictionaries.dictionary import Dictionary
from deltasmith.features.dictionaries.settings import Optimiser, as_json
from deltasmith.features.effects import direct_path, effects_of
from deltasmith.features.graph import Graph, Node
from deltasmith.features.identity import identity_of, identity_of_folder
from deltasmith.features.lineage import Lineage
from deltasmith.features.member_training import Desk, begun, kind_of, parted, trained
from deltasmith.features.members import Planned, of_label, plan_members
from deltasmith.features.models import Opened, open_network
from deltasmith.features.prospects import check_context, notes_of_given, notes_of_repeats, require_memory
from deltasmith.features.quality import measure, scores
from deltasmith.features.recorder import Recorder
from deltasmith.features.requests import CONTEXT, Listener, Request
from deltasmith.features.site import Site
from deltasmith.features.study import FORMAT, Study, written_codes, written_effects, written_held_out
from deltasmith.features.study_document import document_of, written_json
from deltasmith.features.weight_changes import weight_changes

__all__ = ["carry_out"]

_WEIGHTS = "weight changes"
Record = Mapping[str, Any]


def carry_out(request: Request, lineage: Lineage, say: Listener, stop: Stop) -> Study:
    """Train and measure every member, and publish the study. Raises what `training.train` raises."""
    graph = lineage.graph
    with ExitStack() as stack:
        with _opened(request, graph.root, stop) as opened:
            run = _begin(request, lineage, opened, stack, say, stop)
            run.follow(graph.root, lambda: opened)
        for node in graph.nodes[1:]:
            with _Lazy(lambda node=node: _opened(request, node, stop)) as lazy:  # type: ignore[misc]
                run.follow(node, lazy)
        run.compare_weights()
        run.publish()
    return Study.open(request.out)


class _Lazy:
    """A model that is opened when it is first asked for, and closed at the end of a `with` block."""

    def __init__(self, opening: Callable[[], Any]) -> None:
        self._opening, self._stack = opening, ExitStack()
        self._opened: Opened | None = None

    def __call__(self) -> Opened:
        if self._opened is None:
            self._opened = self._stack.enter_context(self._opening())
        return self._opened

    def __enter__(self) -> _Lazy:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened = None
        self._stack.close()


@contextmanager
def _opened(request: Request, node: Node, stop: Stop) -> Iterator[Opened]:
    with open_network(
        node.source,
        device=request.device,
        dtype=request.dtype,
        memory=request.memory,
        threads=request.threads,
        stop=stop,
    ) as opened:
        yield opened


def _begin(
    request: Request, lineage: Lineage, opened: Opened, stack: ExitStack, say: Listener, stop: Stop
) -> _Run:
    """Refuse what cannot become anything, read the text, and claim the place where the study is written."""
    context = request.context or min(opened.context or CONTEXT, CONTEXT)
    check_context(context, opened)
    notes = notes_of_given(request, opened)
    if any(member.trained for member in plan_members(lineage.graph, request)):
        require_memory(request, Recorder(opened.network, Site.parse(request.site), request.device).width)
    say("reading the text", 0, 0, "")
    corpora = read_corpora(
        request.sources,
        opened.tokenizer,
        context=context,
        train_tokens=request.train_tokens,
        held_out_tokens=request.held_out_tokens,
        seed=request.seed,
    )
    say("hashing the models", 0, 0, "")
    graph = lineage.graph
    identities = {node.label: identity_of(node) for node in graph.nodes}
    text = [hashlib.sha256(part.ids.tobytes()).hexdigest() for part in (corpora.train, corpora.held_out)]
    key = digest(__version__, FORMAT, request.settings(), corpora.records, text, identities[graph.root.label])
    sources = [Path(str(node.source)) for node in graph.nodes]
    inputs = [path for path in (*sources, *(path for _, path in request.sources)) if path.exists()]
    place = stack.enter_context(Workplace.open(request.out, key, inputs=inputs, overwrite=request.overwrite))
    run = _Run(request, lineage, corpora, place, identities, opened, say, stop)
    run.notes += notes
    return run


class _Run:
    """A study in the making: what is finished lies in `place`, and `parts` names it."""

    def __init__(
        self,
        request: Request,
        lineage: Lineage,
        corpora: Corpora,
        place: Workplace,
        identities: Mapping[str, str],
        root: Opened,
        say: Listener,
        stop: Stop,
    ) -> None:
        self.request, self.lineage, self.corpora, self.place = request, lineage, corpora, place
        self.identities, self.say, self.stop = identities, say, stop
        self.graph: Graph = lineage.graph
        self.texts, self.numbering = root.texts, root.numbering
        self.members = plan_members(self.graph, request)
        self.text, self.aside = parted(corpora.train)
        self._check_given()
        self.records: dict[str, Record] = {}
        self.scores: dict[str, Record] = {}
        self.changes: Record = {}
        steps = max(member.steps for member in self.members)
        repeats = notes_of_repeats(self.text, steps, request.batch)
        self.notes: list[str] = [*lineage.notes, *corpora.notes, *repeats]

    def _check_given(self) -> None:
        """Refuse a root's dictionary that the others cannot be trained as, before anything is trained."""
        folder = self.request.root_dictionary
        if folder is not None and any(member.trained for member in self.members):
            given = storage.load(folder)
            kind_of(self.request, given.width, given.kind)

    def follow(self, node: Node, model: Callable[[], Opened]) -> None:
        """Train and measure everything of one model that an earlier run has not."""
        desks: list[Desk] = []

        def desk() -> Desk:
            if not desks:
                desks.append(self._desk(node, model()))
            return desks[0]

        for member in of_label(self.members, node.label):
            self._check_stop()
            self.records[member.name] = self._member(member, desk)
        self.scores[node.label] = self._scores(node, model)

    def _desk(self, node: Node, opened: Opened) -> Desk:
        if node is not self.graph.root:
            _refuse_other_numbers(node.label, opened, self.numbering)
            check_context(self.corpora.train.context, opened, node.label)
        recorder = Recorder(
            opened.network, Site.parse(self.request.site), self.request.device, stop=self.stop
        )
        return Desk(node.label, opened, recorder, self.text, self.aside, self.request)

    def _member(self, member: Planned, desk: Callable[[], Desk]) -> Record:
        key = self._key(member)
        known = self.place.known(member.name, key)
        if known is not None:
            self.say(f"{member.name} is finished already", 0, 0, "")
            return known
        dictionary = self._dictionary(member, key, desk())
        opened, recorder = desk().opened, desk().recorder
        self.say(f"measuring {member.name}", 0, 0, "")
        quality, codes = measure(recorder, dictionary, self.corpora.held_out)
        effects = effects_of(opened.network, recorder.site, dictionary)
        path = direct_path(opened.network, recorder.site)
        record = {
            "notes": [path] if isinstance(path, str) else [],
            "kind": as_json(dictionary.kind),
            "latents": dictionary.latents,
            "width": dictionary.width,
            "scale": dictionary.scale,
            "quality": vars(quality),
        }
        files = {
            f"codes/{member.name}.safetensors": written_codes(codes),
            f"effects/{member.name}.safetensors": written_effects(effects),
        }
        if member.trained or member.given:
            saved = storage.files(dictionary, self._metadata(member, opened, record))
            files |= {f"saes/{member.name}/{name}": content for name, content in saved.items()}
            record["sha256"] = hashlib.sha256(saved[storage.WEIGHTS]).hexdigest()
        else:
            record["sha256"] = self.records[str(member.start)]["sha256"]
        return self.place.finish(member.name, key, files, record)

    def _dictionary(self, member: Planned, key: str, desk: Desk) -> Dictionary:
        start: Path | None = None
        if member.given:
            start = self.request.root_dictionary
        elif member.start is not None:
            start = self.place.read(f"saes/{self._own(member.start)}")
        is_root = member.name == self.graph.root.label
        like = None if is_root else self._root_dictionary

        def begin() -> Dictionary:
            return begun(member, desk, start, like)

        if not member.trained:
            return begin()
        return trained(member, key, begin, desk, self.place, self.say, self.stop)

    def _own(self, name: str) -> str:
        """Name the member whose files hold the dictionary that `name` uses."""
        return self.graph.root.label if self.request.mode == "shared" else name

    @cached_property
    def _root_dictionary(self) -> Dictionary:
        return storage.load(self.place.read(f"saes/{self.graph.root.label}"), self.request.device)

    def _key(self, member: Planned) -> str:
        """Hash all that decides a member besides what decides the whole study."""
        root = self.records.get(self.graph.root.label)
        start = None if member.start is None else self.records[member.start]["sha256"]
        given = identity_of_folder(self.request.root_dictionary) if member.given else None  # type: ignore[arg-type]
        like = None if root is None else [root["kind"], root["latents"], root["scale"]]
        return digest("member", self.identities[member.label], vars(member), start, given, like)

    def _metadata(self, member: Planned, opened: Opened, record: Record) -> dict[str, Any]:
        """Return what a dictionary's cfg.json says of where it comes from."""
        ours = {
            "version": __version__,
            "member": member.name,
            "role": member.role,
            "model_fingerprint": opened.fingerprint,
            "site": self.request.site,
            "start": member.start,
            "seed": member.seed,
            "steps": member.steps,
            "corpora": {str(r["name"]): r["sha256"] for r in self.corpora.records},
            "quality": record["quality"],
        }
        return {
            "model_name": opened.name,
            "hook_name": Site.parse(self.request.site).module,
            "model_class_name": "AutoModelForCausalLM",
            "context_size": self.corpora.train.context,
            "prepend_bos": opened.tokenizer.start is not None,
            "deltasmith": ours,
        }

    def _scores(self, node: Node, model: Callable[[], Opened]) -> Record:
        name, key = f"scores of {node.label}", digest("scores", self.identities[node.label])
        known = self.place.known(name, key)
        if known is not None:
            return known
        opened = model()
        self.say(f"scoring {node.label}", 0, 0, "")
        found = scores(opened.network, self.corpora.held_out, [str(r["name"]) for r in self.corpora.records])
        record = {
            "scores": {domain: vars(score) for domain, score in found.items()},
            "name": opened.name,
            "fingerprint": opened.fingerprint,
            "notes": list(opened.notes),
        }
        return self.place.finish(name, key, {}, record)

    def compare_weights(self) -> None:
        """Measure how far the models lie apart."""
        key = digest(
            _WEIGHTS,
            [self.identities[node.label] for node in self.graph.nodes],
            [vars(e) for e in self.graph.edges],
        )
        known = self.place.known(_WEIGHTS, key)
        if known is None:
            found, notes = weight_changes(
                self.graph,
                threads=self.request.threads or available_threads(),
                stop=self.stop,
                say=lambda done, of: self.say("comparing weights", done, of, ""),
            )
            record = {"changes": [change.as_json() for change in found], "notes": list(notes)}
            known = self.place.finish(_WEIGHTS, key, {}, record)
        self.changes = known

    def publish(self) -> None:
        """Write what describes the whole, and put the study in its place."""
        self._check_stop()
        held_out = self.corpora.held_out_tokens
        notes = [*self.notes]
        for found in (*self.scores.values(), *self.records.values(), self.changes):
            notes += found["notes"]
        files = {
            "held_out.safetensors": written_held_out(held_out),
            "tokens.json": written_json(self._token_texts(held_out.ids)),
        }
        parts = [*self.records, *(f"scores of {label}" for label in self.scores), _WEIGHTS]
        hashes = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        document = document_of(
            self.request,
            self.graph,
            corpora=self.corpora.records,
            training=self._training(),
            members=[(member, self.records[member.name]) for member in self.members],
            models=self.scores,
            changes=self.changes["changes"],
            files=self.place.hashes(parts) | hashes,
            notes=map(printable, notes),
        )
        self.place.publish(parts, {**files, "study.json": written_json(document)})

    def _training(self) -> dict[str, Any]:
        request = self.request
        return {
            "optimiser": Optimiser().model_dump(mode="json"),
            "steps": request.steps,
            "child_steps": request.steps_of_children,
            "batch": request.batch,
            "context": self.corpora.train.context,
            "set_aside_tokens": self.aside.tokens,
            "seeds": request.seeds,
            "floors": request.floors,
            "device": request.device,
            "dtype": request.dtype,
        }

    def _token_texts(self, held_out: Any) -> dict[str, str]:
        """Spell every token that occurs in the held-out text or among the effects."""
        ids = set(np.unique(held_out).tolist())
        for member in self.members:
            kinds = {"raised": np.int32, "lowered": np.int32}
            for array in read_arrays(self.place.read(f"effects/{member.name}.safetensors"), kinds).values():
                if array.dtype == np.int32:
                    ids |= set(np.unique(array).tolist())
        listed = sorted(ids)
        return {str(number): text for number, text in zip(listed, self.texts(listed), strict=True)}

    def _check_stop(self) -> None:
        if self.stop.asked:
            raise InterruptedRunError("interrupted", fix="run the same command to go on")


def _refuse_other_numbers(label: str, opened: Opened, numbering: str) -> None:
    if opened.numbering != numbering:
        raise RefusedError(
            "it numbers texts otherwise than the root's model",
            where=printable(label),
            fix="follow features among models of one tokenizer",
        )
