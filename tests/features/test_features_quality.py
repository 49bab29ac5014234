"""What a dictionary leaves over and what that costs, and what a model does on each domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_readers import mistral, pieces_of  # noqa: E402

from deltasmith.errors import RefusedError  # noqa: E402
from deltasmith.features import recorder as recorder_module  # noqa: E402
from deltasmith.features.dictionaries.dictionary import Dictionary, fresh, scale_of  # noqa: E402
from deltasmith.features.dictionaries.settings import Relu, TopK  # noqa: E402
from deltasmith.features.quality import measure, scores  # noqa: E402
from deltasmith.features.recorder import Recorder  # noqa: E402
from deltasmith.features.site import Site  # noqa: E402

HELD_OUT = pieces_of([12, 7, 12, 3, 12, 12, 9])
SITE = Site("model.layers.0.mlp.down_proj", "in")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_GROUP", 36)  # three pieces at once


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(mistral(), SITE)


@pytest.fixture
def raw(recorder: Recorder) -> Any:
    return recorder.activations(HELD_OUT)


def test_quality_and_codes(recorder: Recorder, raw: Any) -> None:
    dictionary = fresh(TopK(k=4), 60, raw, scale_of(raw), 0)
    quality, codes = measure(recorder, dictionary, HELD_OUT)
    whole = dictionary.encode(raw)
    assert (codes.tokens, codes.width) == (HELD_OUT.tokens, 60)
    np.testing.assert_array_equal(codes.latents, whole.latents)
    np.testing.assert_allclose(codes.values, whole.values, rtol=1e-4, atol=1e-6)
    x, y = raw.double().numpy(), dictionary.reconstruct(raw).double().numpy()
    assert quality.fvu == pytest.approx(((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-6)
    assert quality.l0 == len(whole.latents) / HELD_OUT.tokens
    assert quality.dead == (whole.fires == 0).mean() > 0
    assert quality.loss == recorder.losses(HELD_OUT).mean
    assert quality.loss_zeroed == recorder.losses(HELD_OUT, torch.zeros_like).mean
    assert quality.loss_spliced == recorder.losses(HELD_OUT, dictionary.reconstruct).mean
    assert len({quality.loss, quality.loss_zeroed, quality.loss_spliced}) == 3


def exact(width: int) -> Dictionary:
    """Two latents for each coordinate: nothing is left over."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    zeros = torch.zeros
    return Dictionary(Relu(), both, both, zeros(2 * width), torch.full((width,), 5.0), None, 1.0)


def test_a_dictionary_that_loses_nothing(recorder: Recorder) -> None:
    quality, _ = measure(recorder, exact(24), HELD_OUT)
    assert quality.fvu < 1e-10
    assert quality.loss_spliced == pytest.approx(quality.loss, abs=1e-5)


def test_a_dictionary_that_says_nothing_but_its_bias(recorder: Recorder, raw: Any) -> None:
    silent = replace(exact(24), encoder=torch.zeros(48, 24), output_bias=torch.zeros(24))
    quality, codes = measure(recorder, silent, HELD_OUT)
    assert (quality.l0, quality.dead, len(codes.latents)) == (0, 1, 0)
    assert quality.loss_spliced == quality.loss_zeroed
    mean = replace(silent, output_bias=raw.double().mean(0).float())
    assert measure(recorder, mean, HELD_OUT)[0].fvu == pytest.approx(1, abs=1e-5)


def test_a_far_mean_costs_no_digits(recorder: Recorder, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recorder.activations
    monkeypatch.setattr(recorder, "activations", lambda *a: plain(*a) * 0.1 + 30_000)
    far = raw * 0.1 + 30_000
    half = replace(exact(24), output_bias=torch.full((24,), 30_000.0))
    half = replace(half, decoder=half.decoder * 0.5)
    x = far.double() - 30_000
    left = (far.double() - half.reconstruct(far).double()).square().sum()
    spread = (x - x.mean(0)).square().sum()
    assert measure(recorder, half, HELD_OUT)[0].fvu == pytest.approx(float(left / spread), rel=1e-7)


def test_another_width_is_refused(recorder: Recorder) -> None:
    with pytest.raises(RefusedError, match="the site has a width of 24, the dictionary one of 16"):
        measure(recorder, exact(16), HELD_OUT)


def test_a_model_that_is_not_finite_is_refused() -> None:
    network = mistral()
    with torch.no_grad():
        network.lm_head.weight[3] = float("nan")
    with pytest.raises(RefusedError, match="its loss is not finite on the held-out text"):
        measure(Recorder(network, SITE), exact(24), HELD_OUT)


def test_scores_by_domain(recorder: Recorder) -> None:
    found = scores(recorder.network, HELD_OUT, ["even", "odd", "none"])
    losses = recorder.losses(HELD_OUT)
    domain = HELD_OUT.held_out().domain
    assert list(found) == ["even", "odd"]
    for number, score in enumerate(found.values()):
        mine = domain == number
        assert score.tokens == mine.sum() == HELD_OUT.analysed[number::2].sum()
        assert score.loss == pytest.approx(losses.nats[mine].mean(dtype=np.float64), rel=1e-12)
        assert score.accuracy == losses.named[mine].mean()
