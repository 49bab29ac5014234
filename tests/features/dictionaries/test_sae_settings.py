"""The records that say what is trained and how: what they refuse, and the course of the learning rate."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from deltasmith.features.dictionaries.settings import (
    BatchTopK,
    JumpRelu,
    Optimiser,
    Relu,
    ReluL1,
    TopK,
    as_json,
    kind_of_json,
)


@pytest.mark.parametrize("kind", [TopK(k=3), BatchTopK(k=8), ReluL1(coefficient=0.5), Relu(), JumpRelu()])
def test_a_kind_survives_json(kind):
    assert kind_of_json(as_json(kind)) == kind


@pytest.mark.parametrize(
    "document", [{}, {"kind": "topk"}, {"kind": "gated", "k": 3}, "topk", {"kind": "topk", "k": 0}]
)
def test_what_is_no_kind_is_refused(document):
    with pytest.raises(ValidationError):
        kind_of_json(document)


def test_the_rate_rises_stays_and_falls():
    rates = [Optimiser(rate=2.0, warm_up=0.1, decay=0.2).rate_at(i, 100) for i in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:81] == [2.0] * 72
    assert rates[99] == pytest.approx(0.1)
    assert all(rate > 0 for rate in rates)


def test_one_step_has_the_full_rate():
    assert Optimiser(rate=0.5).rate_at(0, 1) == 0.5


def test_phases_longer_than_the_training_are_refused():
    with pytest.raises(
        ValidationError, match=r"warm_up 0.7 and decay 0.5 together are longer than the training"
    ):
        Optimiser(warm_up=0.7, decay=0.5)


def test_settings_need_no_torch():
    code = "import sys, deltasmith.features.dictionaries.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
