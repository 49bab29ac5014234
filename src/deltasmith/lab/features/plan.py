"""What one run of the experiment consists of: models, texts, sizes, studies. Plain records; nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["PATTERNS", "SITE", "STUDIES", "Sizes", "StudyJob", "Subjects", "studies_of"]

SITE = "model.layers.0.mlp.down_proj:in"
"""What the paper's dictionaries read: the MLP's hidden activations, silu(gate) * up."""
PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        # The paper's two case studies. The second is Python's: English and stories have "try" as well.
        "variable assignment": r"^[ \t]*(?:local )?[A-Za-z_][\w.]*( =) ",
        "Python exceptions": r"^[ \t]*(raise|except|try|finally)\b(?=[ :])",
        "exception names": r"\b[A-Z]\w*(?:Error|Exception)\b",
        "Lua errors": r"\b(pcall|xpcall|error)\(",
        # What every language model has, to see what an easy case looks like.
        "line breaks": r"(\n+)",
        "speech": r"(?<=[,.!?])(\") ?(?:said|asked|cried|shouted)\b",
    }
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the dictionaries, and how finely the merge is swept. Numbers of steps are of the root's dictionary."""

    latents: int | str = 1024
    k: int = 16
    steps: int = 6000
    batch: int = 512
    held_out_tokens: int = 100_000
    train_tokens: int | None = 560_000
    sweep: str = "t=0:1:0.1"
    resamples: int = 300
    report: int = 200
    """Features in the report."""

    def options(self) -> dict[str, Any]:
        """Return them as options of `features.train`."""
        names = ("latents", "k", "steps", "batch", "held_out_tokens", "train_tokens")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def shortened(self, factor: int) -> Sizes:
        """Return sizes with fewer steps and tokens: for tests."""
        return replace(
            self, steps=max(4, self.steps // factor), held_out_tokens=self.held_out_tokens // factor
        )


@dataclass(frozen=True)
class Subjects:
    """The models of one run by label, and their texts by domain.

    `parents` gives the lineage by hand where models do not tell it; `control` is a model that nothing has trained;
    `facts` is what the page says of how they were made.
    """

    models: Mapping[str, Path]
    corpora: Mapping[str, Path]
    parents: tuple[str, ...] = ()
    control: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def words(self, *labels: str) -> list[str]:
        """Return LABEL=FOLDER of the models, of all by default."""
        return [f"{label}={self.models[label]}" for label in labels or self.models]

    def corpus_words(self) -> list[str]:
        """Return NAME=PATH of the texts."""
        return [f"{name}={path}" for name, path in self.corpora.items()]


@dataclass(frozen=True)
class StudyJob:
    """One study: `models` and `parents` as `features.train` takes them, and its other options.

    `after` names the study whose root's dictionary this one takes over instead of training it once more. `against`
    names the study whose root is compared with this one's: the edges of such a study are not looked at.
    """

    name: str
    models: tuple[str, ...]
    parents: tuple[str, ...]
    options: Mapping[str, Any]
    after: str | None = None
    against: str | None = None

    @property
    def waits_for(self) -> str | None:
        """Return the study that must be there first."""
        return self.after or self.against


STUDIES = ("warm", "independent", "shared")
"""The studies of the whole graph, one in each mode."""


def studies_of(subjects: Subjects, *, floors: str = "root") -> tuple[StudyJob, ...]:
    """List the studies in an order in which they can be made.

    One study of the graph in each mode. `same-LABEL` trains a dictionary on a child from the base's first latents and
    with the text in the base's order, as in the paper: a member's seed is made of its name, so the child is called
    `base` there, and the only dictionary that is trained is its own. `control` does it on a model that nothing has
    trained, under a seed of its own; `control-warm` starts from the base's dictionary there.
    """
    whole = tuple(subjects.words())
    jobs = [
        StudyJob("warm", whole, subjects.parents, {"mode": "warm", "floors": floors}),
        StudyJob("independent", whole, subjects.parents, {"mode": "independent", "floors": floors}),
        StudyJob("shared", whole, subjects.parents, {"mode": "shared", "floors": "none"}, after="warm"),
    ]
    base = subjects.models["base"]
    alone = {"mode": "shared", "floors": "none"}
    for label in (name for name in subjects.models if name != "base"):
        models = (f"base={subjects.models[label]}", f"other={base}")
        jobs.append(StudyJob(f"same-{label}", models, ("other=base",), alone, against="warm"))
    if subjects.control is not None:
        models = (f"random={subjects.control}", f"other={base}")
        jobs.append(StudyJob("control", models, ("other=random",), alone, against="warm"))
        models = (f"base={base}", f"random={subjects.control}")
        warm = {"mode": "warm", "seeds": 0}
        jobs.append(StudyJob("control-warm", models, ("random=base",), warm, after="warm"))
    return tuple(jobs)
