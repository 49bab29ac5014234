"""A study on disk: what `features train` wrote. Reading it needs neither torch nor the models.

    study.json                        settings, graph, corpus, members with their quality, scores of the models
    saes/MEMBER/                      a dictionary in SAELens' layout: cfg.json, sae_weights.safetensors
    codes/MEMBER.safetensors          which latents fire on the held-out tokens, and how strongly
    effects/MEMBER.safetensors        the tokens that a latent raises and lowers most at the model's output
    held_out.safetensors              the held-out tokens, in the order of the codes
    tokens.json                       the text of every token id that occurs in it or in an effect

study.json lists the SHA-256 of all others under `files`, and a file is compared with it whenever it is read.

A *member* is one dictionary on one model: the label of a model, or a floor, `LABEL~again` or `LABEL~seedN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltasmith.errors import DamagedInputError, DeltasmithError, printable
from deltasmith.features.arrays import read_arrays, written_arrays
from deltasmith.features.codes import Codes
from deltasmith.features.graph import Graph, Node
from deltasmith.formats.fingerprint import sha256_of
from deltasmith.formats.json_file import read_json_object

__all__ = [
    "FORMAT",
    "Effects",
    "HeldOut",
    "Member",
    "Mode",
    "Quality",
    "Role",
    "Score",
    "Study",
    "written_codes",
    "written_effects",
    "written_held_out",
]

FORMAT = 1
Mode = Literal["warm", "independent", "shared"]
"""How the dictionaries of the children begin: as their parent's, afresh, or not at all (the root's serves all)."""
Role = Literal["model", "again", "seed"]
"""What a member is for: to follow a model; or as a floor, the same model once more, trained as its children are
(`again`) or afresh with another seed (`seed`)."""


@dataclass(frozen=True)
class Quality:
    """How well a dictionary stands for the activations of its model on the held-out tokens.

    `fvu` is the unexplained share of the variance, `l0` the mean number of latents that fire on a token, `dead` the
    share that never fires. `loss` is the model's, in nats per token; `loss_spliced` with the reconstruction in the
    activations' place, `loss_zeroed` with zeros there.
    """

    fvu: float
    l0: float
    dead: float
    loss: float
    loss_spliced: float
    loss_zeroed: float

    @property
    def loss_recovered(self) -> float | None:
        """Return (zeroed - spliced) / (zeroed - loss); None where zeroing costs nothing."""
        gap = self.loss_zeroed - self.loss
        return (self.loss_zeroed - self.loss_spliced) / gap if gap > 0 else None


@dataclass(frozen=True)
class Score:
    """What a model does on one domain of the held-out text: nats per token, and the share of next tokens it names."""

    loss: float
    accuracy: float
    tokens: int


@dataclass(frozen=True)
class Member:
    """One dictionary on one model. `start` names the member it began as, None where it began afresh."""

    name: str
    label: str
    role: Role
    start: str | None
    quality: Quality

    @property
    def is_floor(self) -> bool:
        """Tell whether this is a second dictionary of a model, not the one that is followed."""
        return self.role != "model"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out tokens, in the order of every member's codes; positions that are not analysed are left out.

    All arrays are (tokens,): `ids` int32; `sequence` int32, the piece of text that the model read at once; `passage`
    int32, ascending: a run of text within one document, the unit of resampling; `domain` int32 into the domains.
    """

    ids: npt.NDArray[np.int32]
    sequence: npt.NDArray[np.int32]
    passage: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Effects:
    """For each latent the ten tokens it raises and the ten it lowers most at the output: (latents, 10) each."""

    raised: npt.NDArray[np.int32]
    raised_by: npt.NDArray[np.float32]
    lowered: npt.NDArray[np.int32]
    lowered_by: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Study:
    """A finished study; arrays are read when asked for.

    Every file is read only as study.json lists it: DamagedInputError where it is missing, another, or not listed.
    """

    folder: Path
    document: Mapping[str, Any]
    graph: Graph
    members: Mapping[str, Member]
    scores: Mapping[str, Mapping[str, Score]]

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """Read study.json."""
        folder = Path(folder)
        path = folder / "study.json"
        if not path.is_file():
            raise DamagedInputError(
                "there is no study.json" if folder.is_dir() else "there is no such folder",
                where=printable(str(folder)),
                fix="give a folder that `features train` wrote",
            )
        document = read_json_object(path)
        try:
            if document["format"] != FORMAT:
                raise DamagedInputError(
                    f"the study has format {document['format']}, this version reads {FORMAT}",
                    where=printable(str(path)),
                    fix="use the version of deltasmith that wrote it, or train it again",
                )
            nodes = tuple(
                Node(n["label"], None, n["model"], tuple(n["parents"]), n["base"], n["method"])
                for n in document["graph"]
            )
            members = {
                m["name"]: Member(m["name"], m["label"], m["role"], m["start"], Quality(**m["quality"]))
                for m in document["members"]
            }
            scores = {
                label: {domain: Score(**score) for domain, score in domains.items()}
                for label, domains in document["scores"].items()
            }
            return cls(folder, document, Graph(nodes), members, scores)
        except (KeyError, TypeError, AttributeError) as cause:
            raise DamagedInputError(
                f"it is no study ({printable(str(cause))})", where=printable(str(path)), fix="train it again"
            ) from cause
        except DamagedInputError:
            raise
        except DeltasmithError as cause:
            raise DamagedInputError(cause.what, where=printable(str(path)), fix="train it again") from cause

    @property
    def mode(self) -> Mode:
        """Return how the children's dictionaries began."""
        return self.document["mode"]  # type: ignore[no-any-return]

    @property
    def site(self) -> str:
        """Return where the activations were taken."""
        return str(self.document["site"])

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the names of the corpora."""
        return tuple(corpus["name"] for corpus in self.document["corpora"])

    def floors(self, label: str) -> tuple[Member, ...]:
        """Return the second dictionaries of a model."""
        return tuple(m for m in self.members.values() if m.is_floor and m.label == label)

    def dictionary(self, member: str) -> Path:
        """Return the folder of a member's dictionary, looked through; in the mode `shared` they all are the root's."""
        folder = self._dictionary(member)
        for name in ("cfg.json", "sae_weights.safetensors"):
            self._check(folder / name)
        return folder

    def codes(self, member: str) -> Codes:
        """Read what fires on the held-out tokens."""
        path = self.folder / "codes" / f"{member}.safetensors"
        kinds: dict[str, type[np.generic]] = {
            "starts": np.int64,
            "latents": np.int32,
            "values": np.float32,
            "width": np.int64,
        }
        found = self._arrays(path, kinds)
        try:
            return Codes(found["starts"], found["latents"], found["values"], int(found["width"][0]))
        except (ValueError, IndexError) as cause:
            raise DamagedInputError(
                str(cause), where=printable(str(path)), fix="train the study again"
            ) from cause

    def effects(self, member: str) -> Effects:
        """Read which tokens each latent raises and lowers."""
        kinds = {"raised": np.int32, "raised_by": np.float32, "lowered": np.int32, "lowered_by": np.float32}
        return Effects(**self._arrays(self.folder / "effects" / f"{member}.safetensors", kinds))

    def decoder(self, member: str) -> npt.NDArray[np.float32]:
        """Read a dictionary's decoder as it is stored, (latents, width): one direction a latent, of any length."""
        path = self._dictionary(member) / "sae_weights.safetensors"
        return self._arrays(path, {"W_dec": np.float32})["W_dec"]

    @cached_property
    def held_out(self) -> HeldOut:
        """Read the held-out tokens."""
        kinds = dict.fromkeys(("ids", "sequence", "passage", "domain"), np.int32)
        return HeldOut(**self._arrays(self.folder / "held_out.safetensors", kinds))

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """Read the text of every token id that occurs."""
        path = self.folder / "tokens.json"
        self._check(path)
        return {int(key): str(text) for key, text in read_json_object(path).items()}

    def _dictionary(self, member: str) -> Path:
        own = self.folder / "saes" / member
        return own if own.is_dir() or self.mode != "shared" else self.folder / "saes" / self.graph.root.label

    def _arrays(self, path: Path, kinds: Mapping[str, type[np.generic]]) -> dict[str, npt.NDArray[Any]]:
        return read_arrays(path, kinds, sha256=self._listed(path))

    def _check(self, path: Path) -> None:
        if sha256_of(path) != self._listed(path):
            what = "it is not what study.json says"
            raise DamagedInputError(what, where=printable(str(path)), fix="train the study again")

    def _listed(self, path: Path) -> str:
        """Return the hash that study.json lists; a file without one is no part of this study."""
        files = self.document.get("files")
        listed = files.get(path.relative_to(self.folder).as_posix()) if isinstance(files, dict) else None
        if not isinstance(listed, str):
            what = "study.json does not list this file" if path.is_file() else "there is no such file"
            raise DamagedInputError(what, where=printable(str(path)), fix="train the study again")
        return listed


def written_codes(codes: Codes) -> bytes:
    """Return the bytes of a codes file."""
    return written_arrays(
        {
            "starts": codes.starts,
            "latents": codes.latents,
            "values": codes.values,
            "width": np.array([codes.width], np.int64),
        }
    )


def written_effects(effects: Effects) -> bytes:
    """Return the bytes of an effects file."""
    return written_arrays(vars(effects))


def written_held_out(held_out: HeldOut) -> bytes:
    """Return the bytes of the file of held-out tokens."""
    return written_arrays(vars(held_out))
