"""Models seen again through the root's dictionary: the same text, the same codes, the same scores as in the study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import yaml
from small_studies import FAMILY, options

from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError
from deltasmith.features.study import Study
from deltasmith.features.sweep_models import Viewer
from deltasmith.features.sweep_records import read_sweep
from deltasmith.features.sweeping import sweep
from deltasmith.features.training import train


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("sweep") / "models"
    return train(**options(folder, mode="shared", floors="none", steps=20))


def _recipe(**changes: Any) -> dict[str, Any]:
    models = [{"model": str(FAMILY / "small" / name), "label": f"{name}-ft"} for name in ("math", "code")]
    return {
        "base": str(FAMILY / "base"),
        "models": models,
        "space": "weight",
        "merge": {"slerp": {"t": 0.5}},
    } | changes


def test_what_the_study_holds_is_seen_again(study: Study) -> None:
    viewer = Viewer(study, threads=1)
    for label, source in (("base", FAMILY / "base"), ("math", FAMILY / "small" / "math")):
        seen, codes = viewer.look(str(source)), study.codes(label)
        for name in ("starts", "latents", "values"):
            assert np.array_equal(getattr(seen.codes, name), getattr(codes, name))
        assert seen.scores == study.scores[label]
        assert seen.fvu == pytest.approx(study.members[label].quality.fvu)
        assert seen.fingerprint == study.document["models"][label]["fingerprint"]
    assert viewer.stand_ins == 0


def test_a_sweep_of_real_models(study: Study, tmp_path: Path) -> None:
    (tmp_path / "slerp.yaml").write_text(yaml.safe_dump(_recipe()))
    out = tmp_path / "sweep.json"
    found = sweep(
        study, tmp_path / "slerp.yaml", vary="t=0:1:0.5", out=out, resamples=10, min_fires=3, threads=1
    )
    assert [(p.label, p.in_study) for p in found.parents] == [("math", True), ("code", True)]
    assert found.recipe == "slerp.yaml"
    first, middle, last = found.points
    # At the ends the merge is the parent, to the rounding of SLERP.
    for point, label in ((first, "math"), (last, "code")):
        for domain, score in study.scores[label].items():
            assert point.scores[domain].loss == pytest.approx(score.loss, abs=1e-3)
        assert point.kept[label].rates["persisted"].value > 0.99
        assert point.fvu == pytest.approx(study.members[label].quality.fvu, abs=1e-3)
    assert middle.kept["base"].testable == first.kept["base"].testable > 10
    assert read_sweep(out) == found


def test_models_of_other_texts_are_refused(study: Study) -> None:
    texts = dict(study.texts)
    texts[min(texts)] += "?"
    other = replace(study)
    other.__dict__["texts"] = texts
    with pytest.raises(RefusedError, match="it numbers texts otherwise than the models of the study in base"):
        Viewer(other, threads=1).look(str(FAMILY / "base"))


def test_a_look_can_be_stopped(study: Study) -> None:
    stop = Stop()
    viewer = Viewer(study, threads=1, stop=stop)
    stop.ask()
    with pytest.raises(InterruptedRunError):
        viewer.look(str(FAMILY / "base"))
