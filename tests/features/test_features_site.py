"""Naming a place of a network."""

from __future__ import annotations

import pytest

from deltasmith.errors import RecipeError
from deltasmith.features.site import Site, module_at

DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_site_reads_and_writes_itself(side: str) -> None:
    site = Site.parse(f" {DOWN}:{side} ")
    assert (site.module, site.side, str(site)) == (DOWN, side, f"{DOWN}:{side}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            DOWN,
            f"'{DOWN}' does not say which side of the module; write {DOWN}:in for its input, or {DOWN}:out",
        ),
        (f"{DOWN}:input", "is no site; write MODULE:in or MODULE:out"),
        (":in", "':in' is no site"),
        ("", "'' is no site"),
        ("a\x1b[2J", r"a\\x1b\[2J"),
    ],
)
def test_what_is_no_site(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Site.parse(text)
    assert caught.value.exit_code == 2


def _network():  # type: ignore[no-untyped-def]
    nn = pytest.importorskip("torch").nn
    layer = nn.ModuleDict({"mlp": nn.ModuleDict({"down_proj": nn.Linear(2, 2), "up_proj": nn.Linear(2, 2)})})
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([layer, nn.Identity()])})})


def test_the_module_is_found() -> None:
    network = _network()
    assert module_at(network, Site(DOWN, "in")) is network["model"]["layers"][0]["mlp"]["down_proj"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.layers.0.mlp.down_prj", f'did you mean "{DOWN}"'),
        ("model.layers.7.self_attn.projection", "below model.layers there are 0, 1"),
        (f"{DOWN}.weight", f'did you mean "{DOWN}"'),
        ("blocks", "at the top there are model"),
        ("", "at the top there are model"),
    ],
)
def test_an_unknown_module_is_refused_with_what_comes_near(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="the network has no module") as caught:
        module_at(_network(), Site(name, "out"))
    assert hint in str(caught.value)
