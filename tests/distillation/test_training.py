"""The steps of a distillation on a tiny Llama."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_llamas import one_bit, pair, pieces

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.distillation.modules import install  # noqa: E402
from deltasmith.distillation.training import Settings, distance, train  # noqa: E402


def logits_of(model: Any) -> Any:
    return lambda tokens: model(input_ids=tokens, use_cache=False).logits


def prepared(dtype: str = "float32", **options: Any) -> tuple[Any, Any, Any]:
    base, fine = pair(dtype, spread=0.05)
    tensors = one_bit(base, fine, **options)
    # Half the scale: room to learn.
    tensors = {name: replace(one, scale=one.scale / 2) for name, one in tensors.items()}
    return base, fine, install(base, tensors)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("float32", {}), ("float32", {"passes": 2}), ("float32", {"per_row": True}), ("bfloat16", {})],
)
def test_the_loss_falls_and_only_scales_change(dtype: str, options: Any) -> None:
    base, fine, scales = prepared(dtype, **options)
    frozen = {n: p.detach().clone() for n, p in base.named_parameters() if not p.requires_grad}
    start = {name: scale.detach().clone() for name, scale in scales.items()}
    settings = Settings(steps=30, lr=2e-3, checks=5)
    found = train(logits_of(base), logits_of(fine), scales, pieces(40), pieces(8, seed=1), settings)
    assert found.after < 0.8 * found.before
    assert found.step > 0
    assert len(found.training) == 30
    assert [step for step, _ in found.validation] == [0, 6, 12, 18, 24, 30]
    assert all(not torch.equal(start[name], scale) for name, scale in scales.items())
    assert all(np.array_equal(found.scales[name], scale.detach().numpy()) for name, scale in scales.items())
    for name, parameter in base.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])


def test_padding_has_no_influence() -> None:
    """The loss and every gradient are those of the pieces one by one, whatever stands in the padding."""
    short, long = (5, 6, 7), tuple(range(3, 19))
    gradients = []
    for padding in (0, 9):
        base, fine, scales = prepared()
        loss = distance(logits_of(base), logits_of(fine), [short, long], "cpu", padding)
        loss.backward()
        gradients.append([float(loss.detach()), *(float(s.grad.sum()) for s in scales.values())])
    base, fine, scales = prepared()
    alone = [distance(logits_of(base), logits_of(fine), [piece], "cpu", 0) for piece in (short, long)]
    total = (3 * alone[0] + 16 * alone[1]) / 19
    total.backward()
    wanted = [float(total.detach()), *(float(s.grad.sum()) for s in scales.values())]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
    assert gradients[0] == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_scales_that_only_get_worse_are_put_back() -> None:
    base, fine, scales = prepared()
    start = {name: scale.detach().clone() for name, scale in scales.items()}
    settings = Settings(steps=6, lr=1.0, checks=3)
    found = train(logits_of(base), logits_of(fine), scales, pieces(8), pieces(8, seed=1), settings)
    assert (found.step, found.after) == (0, found.before)
    assert min(loss for _, loss in found.validation[1:]) > found.before
    assert all(torch.equal(start[name], scale) for name, scale in scales.items())


def test_the_same_seed_gives_the_same_scales() -> None:
    runs = []
    for seed in (0, 0, 1):
        base, fine, scales = prepared()
        settings = Settings(steps=4, seed=seed, checks=1, schedule="cosine")
        runs.append(train(logits_of(base), logits_of(fine), scales, pieces(20), pieces(4), settings))
    first, again, other = ([loss for _, loss in run.training] for run in runs)
    assert first == again
    assert first != other


def test_it_stops_when_asked_and_at_losses_that_are_not_finite() -> None:
    base, fine, scales = prepared()
    asked = iter([False] * 5 + [True] * 9)
    found = train(
        logits_of(base),
        logits_of(fine),
        scales,
        pieces(8),
        pieces(4),
        Settings(steps=50, checks=1),
        asked=lambda: next(asked),
    )
    assert len(found.training) < 10
    with torch.no_grad():
        next(iter(scales.values())).fill_(float("inf"))
    found = train(logits_of(base), logits_of(fine), scales, pieces(8), pieces(4), Settings(steps=50))
    assert len(found.training) == 1


def test_the_cosine_ends_at_nothing() -> None:
    settings = Settings(steps=10, lr=2.0, schedule="cosine")
    assert settings.lr_at(0) == 2
    assert settings.lr_at(5) == pytest.approx(1)
    assert settings.lr_at(10) == pytest.approx(0)
