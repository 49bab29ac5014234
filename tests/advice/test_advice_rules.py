"""Every rule on both sides of its threshold, on deltas made for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from synthetic import SIGMA, Arrays, base, experience, facts, moved

from deltasmith.advice.candidates import DROPPING
from deltasmith.advice.evidence import Evidence
from deltasmith.advice.facts import Facts, Loss, Overlap, Score
from deltasmith.advice.rules.catalogue import rules_of

GROUND = base()
RULES = {rule.name: rule for rule in rules_of(experience())}
Case = tuple[str, Callable[[], Facts], str | None, str]


def one(size: float) -> Facts:
    """Survey one model whose every |δ| is `size`."""
    return facts(GROUND, [moved(GROUND, size, 1)])


def several(*sizes: float) -> Facts:
    """Survey models in independent directions."""
    return facts(GROUND, [moved(GROUND, size, i) for i, size in enumerate(sizes)])


def blended(share: float) -> Facts:
    """Survey two models whose deltas have about `share` as their cosine: so many elements move alike."""
    rng = np.random.default_rng(7)
    first, other = moved(GROUND, 0.004, 1), moved(GROUND, 0.004, 2)
    second: Arrays = {
        n: np.where(rng.random(a.shape) < share, first[n], other[n]).astype(np.float32)
        for n, a in GROUND.items()
    }
    return facts(GROUND, [first, second])


def mixed(share: float) -> Facts:
    """Survey a model that is `share` of the base and otherwise another one, of the base's norm."""
    other = base(9)
    rest = float(np.sqrt(1 - share**2))
    return facts(GROUND, [{n: (share * a + rest * other[n]).astype(np.float32) for n, a in GROUND.items()}])


def with_model(**changes: object) -> Facts:
    """Survey a model, and change figures that no float32 delta has."""
    found = one(0.001)
    return replace(found, models=(replace(found.models[0], **changes),))  # type: ignore[arg-type]


def uneven(share: float) -> Facts:
    """Survey a model whose second layer has `share` of elements far above the others."""
    tuned = moved(GROUND, 0.001, 1)
    rng = np.random.default_rng(8)
    for name in tuned:
        if "layers" in name:
            big = rng.random(tuned[name].shape) < (share if "layers.1" in name else 0.01)
            tuned[name] = np.where(big, GROUND[name] + 0.01, tuned[name]).astype(np.float32)
    return facts(GROUND, [tuned])


def scored(kept: float, models: int = 1) -> Facts:
    score = Score("m0", kept, kept - 0.01, kept + 0.01, ("t",))
    return facts(GROUND, [moved(GROUND, 0.001, i) for i in range(models)], scores=[score])


def lossy(*losses: tuple[str, float, float, float]) -> Facts:
    """Losses of one wide interval; of each its name, its value, and the interval of what it is above the first."""
    least = losses[0][1]
    found = (Loss(n, v, v, -9.0, 9.0, (v - least, low, high)) for n, v, low, high in losses)
    return replace(several(0.001, 0.001), losses=tuple(found))


def overlapping(value: float) -> Facts:
    found = several(0.001, 0.001)
    return replace(found, pairs=(replace(found.pairs[0], overlap=Overlap(value, 0.1, 0.1, 4)),))


LEAST = ("ta", -0.2, 0.0, 0.0)
ONE_CHUNK = Loss("ta", 0.0, -0.2, float("nan"), float("nan"), (0.0, 0.0, 0.0))
LAB_SMALL, LAB_LARGE = 0.05 * SIGMA, 0.4 * SIGMA

CASES: list[Case] = [
    ("no delta", lambda: facts(GROUND, [GROUND]), "stops", "does not differ"),
    ("no delta", lambda: one(1e-5), None, ""),
    ("base: direction", lambda: mixed(0.25), "stops", "another model's base"),
    ("base: direction", lambda: mixed(0.4), "warns", "nearer one"),
    ("base: direction", lambda: mixed(0.8), None, ""),
    ("base: distance", lambda: one(1.3 * SIGMA), "stops", "larger than the weights"),
    ("base: distance", lambda: one(1.1 * SIGMA), None, ""),
    ("base: one far, one near", lambda: several(0.001, 0.011), "warns", "m1 lies 11 times"),
    ("base: one far, one near", lambda: several(0.001, 0.009), None, ""),
    ("base: common ancestor", lambda: blended(0.85), "warns", "common ancestor"),
    ("base: common ancestor", lambda: blended(0.75), None, ""),
    ("files", lambda: replace(one(0.001), warnings=("templates differ",)), "warns", "templates differ"),
    ("files", lambda: one(0.001), None, ""),
    ("rounding: hidden", lambda: with_model(rounded=0.31, unmoved=0.4), "warns", "float32"),
    ("rounding: hidden", lambda: with_model(rounded=0.29, unmoved=0.4), "notes", "little is hidden"),
    ("rounding: hidden", lambda: one(0.001), "notes", "cannot be told"),
    ("rounding: to come", lambda: with_model(lost_half=0.11), "warns", "dtype: float32"),
    ("rounding: to come", lambda: with_model(lost_half=0.09), None, ""),
    ("DPPA's criterion", lambda: scored(0.899), "narrows", "takes DARE's place (within the noise"),
    ("DPPA's criterion", lambda: scored(0.9), "excludes", "DARE suffices"),
    ("DPPA's criterion", lambda: scored(0.5, models=2), "excludes", "takes DARE's place"),
    ("DPPA's criterion", lambda: one(0.001), None, ""),
    ("loss on your data", lambda: lossy(LEAST, ("ties", -0.1, -0.01, 0.2)), "keeps", "not shown to be above"),
    ("loss on your data", lambda: lossy(LEAST, ("ties", -0.1, 0.01, 0.2)), "keeps", "least loss: ta"),
    ("loss on your data", lambda: replace(one(0.001), losses=(ONE_CHUNK,)), "notes", "one chunk"),
    ("loss on your data", lambda: one(0.001), None, ""),
    ("size", lambda: one(0.0048), "notes", "cost a 13 B model little"),
    ("size", lambda: one(0.0052), "notes", "between"),
    ("size", lambda: one(0.0095), "notes", "between"),
    ("size", lambda: one(0.0105), "notes", "a tenth destroyed"),
    ("size", lambda: one(0.029), "notes", "a tenth destroyed"),
    ("size", lambda: one(0.031), "notes", "infeasible"),
    # the lab of the helpers splits at the geometric mean of 0.05 and 0.4: 0.141
    ("relative size", lambda: one(0.13 * SIGMA), "notes", "harmless"),
    ("relative size", lambda: one(0.16 * SIGMA), "excludes", "breaks such deltas"),
    ("outliers", lambda: uneven(0.03), "notes", "unequally"),
    ("outliers", lambda: uneven(0.012), "notes", "alike"),
    ("direction", lambda: blended(0.55), "narrows", "their mean"),
    ("direction", lambda: blended(0.45), "notes", "no reason"),
    ("direction", lambda: one(0.001), None, ""),
    ("sign conflict", lambda: blended(0.2), "notes", "fewer opposed"),
    ("sign conflict", lambda: several(0.001, 0.001), "notes", "as many opposed"),
    ("sign conflict", lambda: one(0.001), None, ""),
    ("subspaces", lambda: overlapping(0.31), "notes", "are shared"),
    ("subspaces", lambda: overlapping(0.29), "notes", "not shared"),
    ("subspaces", lambda: one(0.001), None, ""),
    ("many models", lambda: several(*[0.001] * 5), "narrows", "singular directions"),
    ("many models", lambda: several(*[0.001] * 4), None, ""),
    ("many models", lambda: replace(several(*[0.001] * 5), matrices=False), None, ""),
    ("uneven sizes", lambda: several(0.001, 0.0031), "warns", "m1 will outvote m0"),
    ("uneven sizes", lambda: several(0.001, 0.0029), None, ""),
    ("our lab", lambda: several(LAB_SMALL, LAB_SMALL), "narrows", "ta, ties"),
    ("our lab", lambda: several(LAB_LARGE, LAB_LARGE), "notes", "changed from case to case"),
    ("our lab", lambda: several(0.01 * SIGMA, 0.01 * SIGMA), "notes", "it has no say"),
    ("our lab", lambda: one(LAB_SMALL), "narrows", "dare, magprune"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "effect", "says"), CASES, ids=[f"{c[0]}-{c[2]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_rule_on_one_side_of_its_threshold(
    name: str, make: Callable[[], Facts], effect: str | None, says: str
) -> None:
    found: tuple[Evidence, ...] = RULES[name](make())
    if effect is None:
        assert found == ()
        return
    assert found[-1].effect == effect
    assert says in found[-1].says
    assert found[-1].source == RULES[name].source


def test_every_rule_is_tested() -> None:
    assert {case[0] for case in CASES} == set(RULES)


def test_every_rule_says_what_it_compares_with_what_and_why() -> None:
    for rule in RULES.values():
        assert rule.asks
        assert rule.bound
        assert rule.source


def test_what_is_excluded() -> None:
    broken = RULES["relative size"](one(0.16 * SIGMA))[0]
    assert broken.methods == DROPPING
    low, _ = RULES["DPPA's criterion"](scored(0.8))
    assert low.methods == ("dare", "dare_ties")
    assert RULES["DPPA's criterion"](scored(0.95, models=2))[-1].methods == ("dppa",)
    least = RULES["loss on your data"](lossy(LEAST, ("ties", -0.1, 0.01, 0.2)))[-1]
    assert least.methods == ("ta",)
    level = RULES["loss on your data"](lossy(LEAST, ("ties", -0.1, -0.01, 0.2)))
    assert level[-1].methods == ("ta", "ties")
    assert level[1].number.endswith("0.1000 [-0.0100, +0.2000] above the least")


def test_small_weights_make_the_same_delta_large() -> None:
    """0.009 is fine by neither measure on weights of 0.05, but on weights ten times as large it is harmless."""
    ground = {n: 10 * a for n, a in GROUND.items()}
    large = facts(ground, [moved(ground, 0.009, 1)])
    assert RULES["relative size"](one(0.009))[0].effect == "excludes"
    assert RULES["relative size"](large)[0].effect == "notes"
    assert RULES["size"](one(0.009))[0].says == RULES["size"](large)[0].says
