"""What does not fit together is told of, by its file, before it is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.features.arrays import written_arrays
from deltasmith.features.outcome import Outcome
from deltasmith.features.page.checking import check_detectors, check_files, check_links
from deltasmith.features.pattern_records import Detector, Found, Marking, MemberDetectors, Patterns
from deltasmith.features.study import Effects, HeldOut, Study, written_effects, written_held_out
from features.made_studies import sealed


def test_links_to_features_that_are_not_there_are_refused(study: Study, outcome: Outcome) -> None:
    check_links(study, outcome, Path("match"))
    edge = outcome.edges[0]
    best = edge.parents.best.copy()
    best[7] = 96
    for parents in (
        replace(edge.parents, best=best),
        replace(edge.parents, second=edge.parents.second[:-1].copy(), best=edge.parents.best[:-1]),
        replace(edge.parents, second=np.full_like(best, -2)),
    ):
        broken = replace(outcome, edges=(replace(edge, parents=parents), *outcome.edges[1:]))
        with pytest.raises(
            DamagedInputError,
            match="what was matched does not fit the study in match; run `deltasmith features match`",
        ):
            check_links(study, broken, Path("match"))
    merge, universal = outcome.merges[0], outcome.universal
    for broken in (
        replace(outcome, edges=outcome.edges[1:]),
        replace(outcome, merges=(replace(merge, parents=("lua", "stories", "nobody")),)),
        replace(outcome, merges=(replace(merge, origin=merge.origin[1:]),)),
        replace(outcome, universal=replace(universal, features=universal.features + 90)),
        replace(outcome, universal=replace(universal, members=("base", "lua", "stories", "nobody"))),
    ):
        with pytest.raises(DamagedInputError, match="does not fit"):
            check_links(study, broken, Path("match"))


def test_a_pattern_may_not_name_a_feature_that_is_not_there() -> None:
    def patterns(latent: int, label: str = "base") -> Patterns:
        found = MemberDetectors(label, (Detector(latent, Marking(0.1, 1, 1, 1.0, 1.0, 1.0)),))
        return Patterns("0" * 64, (Found("x", "x", 1, 1, {}, (found,)),))

    check_detectors(patterns(79), {"base": 80}, Path("p.json"))
    check_detectors(patterns(900, "base~again"), {"base": 80}, Path("p.json"))  # no model of the page
    for latent in (80, -1):
        with pytest.raises(
            DamagedInputError,
            match=r"a feature that base does not have in p\.json; run `deltasmith features match --find` again",
        ):
            check_detectors(patterns(latent), {"base": 80}, Path("p.json"))


def _short_effects(study: Study, folder: Path) -> None:
    cut = Effects(*(array[:-1] for array in vars(study.effects("lua")).values()))
    (folder / "effects" / "lua.safetensors").write_bytes(written_effects(cut))


def _infinite_effects(study: Study, folder: Path) -> None:
    effects = study.effects("lua")
    wild = replace(effects, raised_by=np.full_like(effects.raised_by, np.nan))
    (folder / "effects" / "lua.safetensors").write_bytes(written_effects(wild))


def _short_decoder(study: Study, folder: Path) -> None:
    cut = written_arrays({"W_dec": study.decoder("lua")[:-1]})
    (folder / "saes" / "lua" / "sae_weights.safetensors").write_bytes(cut)


def _other_text(study: Study, folder: Path) -> None:
    cut = HeldOut(*(array[:-1] for array in vars(study.held_out).values()))
    (folder / "held_out.safetensors").write_bytes(written_held_out(cut))


def _uneven_text(study: Study, folder: Path) -> None:
    held_out = study.held_out
    uneven = HeldOut(held_out.ids, held_out.sequence, held_out.passage, held_out.domain[:-1])
    (folder / "held_out.safetensors").write_bytes(written_held_out(uneven))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_short_effects, "the codes, effects, dictionary and tokens of lua do not fit together"),
        (_infinite_effects, "tokens of lua do not fit"),
        (_short_decoder, "tokens of lua do not fit"),
        (_other_text, "tokens of base do not fit"),
        (_uneven_text, "the held-out arrays differ in length"),
    ],
)
def test_files_that_do_not_fit_are_named(
    study: Study, tmp_path: Path, damage: Callable[[Study, Path], None], said: str
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study.folder, folder)
    check_files(Study.open(folder))
    damage(study, folder)
    with pytest.raises(DamagedInputError, match=r"not what study\.json says"):
        check_files(Study.open(folder))
    with pytest.raises(DamagedInputError, match=said):
        check_files(sealed(folder))
