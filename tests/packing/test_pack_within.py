"""`pack --budget`: the file fits, a larger budget errs less, rules hold, and too little is refused."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from containers import values
from deltasmith.errors import RefusedError
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.packing import frugal
from deltasmith.packing.choosing import is_linear
from deltasmith.packing.frugal import pack_within
from models import check_refusal, draw, family, run, tuned, write_model

AMONG = ("zero", "bitdelta", "residual_bits:passes=2", "low_rank:rank=4", "claq:bits=2", "sparse")
BUDGETS = (0.15, 0.2, 0.3, 0.5)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("pack-within") / "models"
    return family(root, experts=1, hidden=64, inter=96, vocab=64)


@pytest.fixture(scope="module")
def packed(models):
    """Pack once for every budget; the results and the folders."""
    found = {}
    for budget in BUDGETS:
        out = models.root / f"within-{budget}"
        result = pack_within(models.root / "base", models.root / "m0", out, budget=budget, among=AMONG)
        found[budget] = result, out
    return found


def error_of(models, out):
    base = open_model(str(models.root / "base")).checkpoint
    wanted = open_model(str(models.root / "m0")).checkpoint
    total = 0.0
    for name, again in values(out, base).items():
        exact = np.empty(again.size, np.float32)
        wanted.read(name, 0, exact)
        total += float(np.sum((again.ravel().astype(np.float64) - exact) ** 2))
    return total


def linears(out):
    return {n: r for n, r in open_packed(out).delta().tensors.items() if is_linear(n, r.spec.shape)}


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_file_takes_no_more_than_the_budget(packed, budget):
    result, out = packed[budget]
    size = (out / "delta.safetensors").stat().st_size
    assert size == result.nbytes
    assert size <= budget * 2 * result.elements
    assert size >= 0.8 * min(budget, 0.3) * 2 * result.elements, "what is allowed is used"


def test_the_file_fits_even_where_its_bytes_were_guessed_too_low(models, tmp_path, monkeypatch):
    monkeypatch.setattr(frugal, "_AROUND", -4000)
    result = pack_within(models.root / "base", models.root / "m0", tmp_path / "out", budget=0.2, among=AMONG)
    assert (tmp_path / "out" / "delta.safetensors").stat().st_size <= 0.2 * 2 * result.elements


def test_more_room_leaves_less_error(models, packed):
    errors = [error_of(models, out) for _, out in packed.values()]
    assert all(more > less for more, less in pairwise(errors)), errors
    told = [result.relative_error for result, _ in packed.values()]
    assert all(more > less for more, less in pairwise(told)), told


def test_what_the_budget_is_not_for_goes_by_rest(models, packed):
    for _, out in packed.values():
        tensors = open_packed(out).delta().tensors
        others = {type(r.codec).__name__ for n, r in tensors.items() if n not in linears(out)}
        assert others == {"Lossless"}
        assert len({r.codec for r in linears(out).values()}) > 1, "tensors choose for themselves"


def test_it_errs_less_than_one_codec_in_about_as_many_bytes(models, packed):
    assert run(
        "pack", models.root / "base", models.root / "m0", models.root / "claq", "--codec", "claq:bits=2", "--quiet"
    ).code == 0  # fmt: skip
    size = (models.root / "claq" / "delta.safetensors").stat().st_size
    share = 1.05 * size / (2 * packed[0.3][0].elements)  # bytes are estimated, a little too high
    best = models.root / "as-claq"
    pack_within(models.root / "base", models.root / "m0", best, budget=share, among=AMONG)
    assert error_of(models, best) <= error_of(models, models.root / "claq")


def test_a_rule_is_respected(models, tmp_path):
    result = run(
        "pack", models.root / "base", models.root / "m0", tmp_path / "out", "--quiet", "--budget", "0.3",
        "--rule", "*.up_proj.*=bitdelta:scale=row", "--rule", "lm_head.*=dense",
        *(part for codec in AMONG[1:] for part in ("--candidate", codec)),
    )  # fmt: skip
    assert result.code == 0, result.err
    delta = open_packed(tmp_path / "out").delta()
    for layer in (0, 1):
        codec = delta.codec(f"model.layers.{layer}.mlp.up_proj.weight")
        assert (type(codec).__name__, codec.scale) == ("BitDelta", "row")
    assert type(delta.codec("lm_head.weight")).__name__ == "Dense"
    assert not any(type(r.codec).__name__ == "Zero" for r in delta.tensors.values()), "no candidate here"
    size = (tmp_path / "out" / "delta.safetensors").stat().st_size
    assert size <= 0.3 * 2 * sum(r.spec.size for r in delta.tensors.values())


def test_a_budget_below_the_smallest_possible_is_refused_and_the_named_one_works(models, tmp_path):
    both = models.root / "base", models.root / "m0"
    offers = [part for codec in AMONG for part in ("--candidate", codec)]
    result = run("pack", *both, tmp_path / "out", "--quiet", "--budget", "0.01", *offers)
    check_refusal(result, 1, "cannot be met", "the smallest possible is")
    assert list(tmp_path.iterdir()) == []
    named = re.search(r"smallest possible is ([\d,]+) bytes, --budget ([\d.]+)", result.err)
    assert named is not None
    result = run("pack", *both, tmp_path / "out", "--quiet", "--budget", named[2], *offers)
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "delta.safetensors").stat().st_size <= float(named[2]) * 2 * 10**6
    with pytest.raises(RefusedError, match="cannot be met"):
        pack_within(*both, tmp_path / "less", budget=0.9 * float(named[2]), among=AMONG)


def test_a_tensor_that_no_candidate_takes_is_refused_by_name(models, tmp_path):
    with pytest.raises(RefusedError, match="lossless") as caught:
        pack_within(
            models.root / "base",
            models.root / "m0",
            tmp_path / "out",
            budget=0.5,
            among=["low_rank:rank=2"],
            where="*",
        )
    assert "model.norm.weight" in str(caught.value) or "layernorm" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_candidate_that_the_values_are_too_large_for_leaves_the_choice_to_others(tmp_path):
    """Factors of about 1e6 do not fit float16; headers cannot tell."""
    narrow, name = "low_rank:rank=4,dtype=float16", "model.layers.0.mlp.up_proj.weight"
    base = draw(0, hidden=64)
    write_model(tmp_path / "base", base, "float32")
    write_model(tmp_path / "m0", tuned(base, 0) | {name: base[name] + np.float32(1e12)}, "float32")
    models = tmp_path / "base", tmp_path / "m0"
    pack_within(*models, tmp_path / "out", budget=2.5, among=[narrow, "lossless"])
    found = {n: type(r.codec).__name__ for n, r in linears(tmp_path / "out").items()}
    assert found[name] == "Lossless"
    with pytest.raises(RefusedError, match="out of the range of float16") as caught:
        pack_within(*models, tmp_path / "none", budget=2.5, among=[narrow])
    assert name in str(caught.value)
