"""What attaching refuses, what it holds, and how a choice is made and unmade."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runtime_models import emr_packed, packed, tuned, unpacked, words  # noqa: E402
from torch import nn  # noqa: E402

from deltasmith.errors import DamagedInputError, DeltasmithError, RefusedError  # noqa: E402
from deltasmith.formats.hashing import ChunkHasher  # noqa: E402
from deltasmith.runtime import HeldDelta, Runtime, attach, terms  # noqa: E402


def plain(seed: int = 0, width: int = 64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, 8))


def with_deltas(text: str = "bitdelta", n: int = 2) -> tuple[nn.Module, Runtime, dict[str, HeldDelta]]:
    model = plain()
    deltas = {str(i): packed(model, tuned(model, i), text) for i in range(n)}
    return model, attach(model, deltas), deltas


def assert_refused(call: Any, *parts: str) -> None:
    with pytest.raises(RefusedError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


def test_a_delta_of_another_shape_is_refused() -> None:
    delta = packed(plain(width=16), tuned(plain(width=16), 1), "bitdelta")
    assert_refused(
        lambda: attach(plain(), {"math": delta}),
        "0.weight is [16, 32], the model's is [64, 32] in the delta 'math'; attach it to its own base",
    )


def test_tensors_that_the_model_lacks_are_refused_all_at_once_or_left_out_on_request() -> None:
    model = plain()
    delta = packed(model, tuned(model, 1), "bitdelta")
    more = HeldDelta({f"old.{n}": t for n, t in delta.tensors.items()} | dict(delta.tensors))
    assert_refused(
        lambda: attach(model, {"math": more}),
        "the model has no tensor old.0.weight (and 5 more) in the delta 'math'; attach it to its own base",
    )
    attach(model, {"math": more}, ignore=["old.*"]).detach()


@torch.no_grad()
def test_a_second_runtime_on_one_model_is_refused_until_the_first_is_detached() -> None:
    model, runtime, deltas = with_deltas()
    right = model(torch.ones(2, 32))
    line = "deltas are attached to this model already; detach() that runtime first, or attach all deltas together"
    assert_refused(lambda: attach(model, deltas), line)
    assert_refused(lambda: attach(nn.Sequential(model), {}), line)
    assert torch.equal(model(torch.ones(2, 32)), right)
    runtime.detach()
    attach(model, deltas).detach()


def test_a_runtime_shows_what_is_attached_and_in_use() -> None:
    _, runtime, _ = with_deltas()
    size = f"{runtime.total_nbytes:,} bytes"
    assert repr(runtime) == f"<Runtime of 0, 1: the base in use, {size}>"
    with runtime.rows(["1", None]):
        assert repr(runtime) == f"<Runtime of 0, 1: 1, the base by row in use, {size}>"
    runtime.switch("0")
    assert repr(runtime) == f"<Runtime of 0, 1: 0 in use, {size}>"
    runtime.detach()
    assert repr(runtime) == "<Runtime of 0, 1: detached>"


def test_unknown_labels_are_refused() -> None:
    _, runtime, _ = with_deltas()
    assert_refused(lambda: runtime.switch("history"), "no delta 'history' is attached; there are 0, 1")
    assert_refused(lambda: runtime.rows(["0", "history"]), "no delta 'history' is attached")
    assert_refused(lambda: runtime.rows([]), "no labels were given; give one label per row")
    assert runtime.selected is None


@torch.no_grad()
def test_a_batch_of_another_length_is_refused() -> None:
    model, runtime, _ = with_deltas()
    with runtime.rows(["0", "1"]):
        assert_refused(
            lambda: model(torch.zeros(3, 32)),
            "the batch has 3 rows and 2 labels were given; give one label per row",
        )


def test_parameters_that_no_module_serves_are_refused() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 16))
    delta = packed(model, tuned(model, 1), "bitdelta")
    assert_refused(
        lambda: attach(model, {"math": delta}), "lies in a TransformerEncoderLayer, which reads parameters"
    )
    bare = nn.Linear(4, 4)
    assert_refused(
        lambda: attach(bare, {"math": packed(bare, tuned(bare, 1), "bitdelta")}),
        "weight belongs to the model itself, not to a module in it",
    )


def test_a_model_that_is_not_in_memory_is_refused() -> None:
    delta = packed(plain(), tuned(plain(), 1), "bitdelta")
    assert_refused(
        lambda: attach(plain().to("meta"), {"math": delta}), "0.weight is not in memory in the model; load"
    )


@pytest.mark.parametrize(
    ("name", "text"), [("signs", "bitdelta"), ("scale", "bitdelta"), ("stream", "sparse")]
)
def test_damaged_arrays_are_refused_by_name(name: str, text: str) -> None:
    model = plain()
    delta = packed(model, tuned(model, 1), text)
    codec, arrays, cell = delta.tensors["0.weight"]
    broken = dict(delta.tensors) | {"0.weight": (codec, {**arrays, name: arrays[name][:-1]}, cell)}
    with pytest.raises(DamagedInputError, match=r"it does not decode \(.*\) in 0.weight of the delta 'math'"):
        attach(model, {"math": HeldDelta(broken)})


@torch.no_grad()
def test_choices_nest_and_end() -> None:
    model, runtime, deltas = with_deltas()
    x = torch.randn(2, 32)
    right = {k: unpacked_twin(d)(x) for k, d in deltas.items()} | {None: plain()(x)}
    runtime.switch("0")
    assert runtime.selected == "0"
    with runtime.use("1"):
        torch.testing.assert_close(model(x), right["1"])
        with runtime.rows([None, "0"]):
            assert runtime.selected == (None, "0")
            torch.testing.assert_close(model(x)[1], right["0"][1])
        with pytest.raises(KeyError), runtime.use(None):
            raise KeyError
        torch.testing.assert_close(model(x), right["1"])
    torch.testing.assert_close(model(x), right["0"])
    runtime.use("1")  # without a block it stays
    torch.testing.assert_close(model(x), right["1"])
    runtime.switch(None)
    assert torch.equal(model(x), right[None])


def unpacked_twin(delta: HeldDelta) -> nn.Module:
    return unpacked(plain(), delta)


def test_memory_is_that_of_the_packed_arrays() -> None:
    model, runtime, _ = with_deltas()
    bits, scales = (64 * 32 + 8 * 64) // 8, (64 + 8) * 4
    values = (64 + 2 * 64 + 8) * 4  # biases and the norm
    assert runtime.nbytes == {"0": bits + scales + values, "1": bits + scales + values}
    assert runtime.total_nbytes == 2 * (bits + scales + values)
    runtime.detach()
    unified = sum(p.numel() for p in (model[0].weight, model[3].weight)) * 4
    masks = (64 * 32 + 8 * 64) // 8
    states = {str(i): tuned(model, i) for i in range(3)}
    emr = attach(model, emr_packed(model, states))
    assert emr.nbytes["0"] == unified + masks + values
    assert emr.total_nbytes == unified + 3 * (masks + values)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("bitdelta", terms.SignTerm),
        ("residual_bits:passes=2", terms.SignTerm),
        ("low_rank:rank=2", terms.LowRankTerm),
        ("sparse", terms.SparseTerm),
        ("claq", type(None)),
    ],
)
def test_storage_is_used_as_it_is(text: str, kind: type) -> None:
    """Where a term is not taken, values would be right all the same, and many times larger."""
    model, runtime, _ = with_deltas(text)
    sizes = {type(site.parts["0"].term) for site in (model[0], model[3])}
    assert sizes == {kind}
    if kind is not type(None):
        dense = sum(p.numel() * 4 for p in (model[0].weight, model[3].weight))
        assert runtime.nbytes["0"] < dense * (0.5 if text == "sparse" else 0.3) + 4 * (64 + 128 + 8 + 128)


@torch.no_grad()
def test_a_matrix_without_nonzeros() -> None:
    model = plain()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    runtime = attach(model, {"same": packed(model, state, "sparse")})
    x = torch.randn(3, 32)
    with runtime.rows(["same", None, "same"]):
        torch.testing.assert_close(model(x), plain()(x))


def test_unchanged_tensors_take_nothing() -> None:
    model = plain()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    runtime = attach(model, {"same": packed(model, state, "lossless")})
    assert runtime.nbytes == {"same": 0}
    assert type(model[0]) is nn.Linear


@torch.no_grad()
def test_modes_and_types_follow_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    model.eval()
    delta = packed(model, tuned(model, 1), "bitdelta")
    twin = unpacked(model, delta)
    runtime = attach(model, {"math": delta})
    x = torch.randn(3, 8)
    with runtime.use("math"):
        torch.testing.assert_close(model(x), twin(x))
        model.train()
        assert model[2].base.training
        model.eval()
        assert not model[2].base.training
        model.double()
        torch.testing.assert_close(model(x.double()), twin.double()(x.double()), atol=1e-5, rtol=1e-5)
    assert model[0].in_features == 8


def test_gradients_reach_the_input_through_the_delta() -> None:
    model, runtime, deltas = with_deltas("residual_bits:passes=2")
    twin = unpacked(plain(), deltas["1"])
    x, y = torch.ones(2, 32, requires_grad=True), torch.ones(2, 32, requires_grad=True)
    twin(x).sum().backward()
    with runtime.rows([None, "1"]):
        model(y)[1].sum().backward()
    torch.testing.assert_close(y.grad[1], x.grad[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_container_on_disk_and_the_wrong_base(tmp_path: Path) -> None:
    packing = pytest.importorskip("deltasmith.packing")
    from safetensors.numpy import save_file

    model = plain()
    fine = tuned(model, 1)
    for name, state in (("base", dict(model.named_parameters())), ("fine", fine)):
        (tmp_path / name).mkdir()
        arrays = {n: np.ascontiguousarray(t.detach().numpy()) for n, t in state.items()}
        save_file(arrays, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "plain"}')
    packing.pack(tmp_path / "base", tmp_path / "fine", tmp_path / "packed", codec="lossless", label="math")
    runtime = attach(model, {"math": tmp_path / "packed", "again": f"{tmp_path / 'packed'}#math"})
    x = torch.randn(2, 32)
    twin = plain()
    twin.load_state_dict(fine)
    with runtime.rows(["math", "again"]):
        torch.testing.assert_close(model(x), twin(x))
    assert_refused(
        lambda: attach(plain(), {"math": f"{tmp_path / 'packed'}#other"}), "there is no delta 'other'"
    )
    with pytest.raises(
        DeltasmithError,
        match=r"the model is not the base that the delta was packed against, or the delta is damaged \(.+\) in "
        r".* of the delta 'math'; load the base it was packed with",
    ):
        attach(plain(seed=1), {"math": tmp_path / "packed"})


@torch.no_grad()
def test_a_base_that_gives_other_values_is_refused_by_the_hash() -> None:
    """Where a wrong base does decode: the document of a container holds the hash of what must come out."""
    model = plain()
    delta = packed(model, tuned(model, 1, spread=1e-7), "lossless")
    right = delta.codec("3.bias").decode(
        delta.tensors["3.bias"][1], delta.cell("3.bias"), words(model[3].bias)
    )
    hasher = ChunkHasher(right.nbytes)
    hasher.add(0, memoryview(right.tobytes()))
    record = SimpleNamespace(xxh3_128=hasher.digest())
    recorded = SimpleNamespace(
        names=("3.bias",), cell=delta.cell, codec=delta.codec, source=delta.source, tensors={"3.bias": record}
    )
    attach(model, {"math": recorded}).detach()
    model[3].bias += 1e-3
    assert_refused(
        lambda: attach(model, {"math": recorded}),
        "the model does not have the base's values in 3.bias of the delta 'math'; load the base it was packed with",
    )
