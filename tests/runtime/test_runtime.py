"""A model with deltas attached computes what each unpacked fine-tune computes."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from runtime_models import emr_packed, llama, packed, tuned, unpacked  # noqa: E402
from torch import nn  # noqa: E402

from deltasmith.errors import RefusedError  # noqa: E402
from deltasmith.runtime import HeldDelta, attach  # noqa: E402

TEXTS = [
    "bitdelta",
    "bitdelta:zero=plus,scale=row",
    "bitdelta:zero=zero",
    "residual_bits:passes=3",
    "low_rank:rank=3",
    "sparse",
    "claq:bits=3",
    "magnitude_blocks",
    "lossless",
    "dense",
]
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14], [15, 16, 17, 18]])
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


def two(model: Any, text: str) -> dict[str, HeldDelta]:
    """Pack two fine-tunes with one codec; the first leaves a third of its matrices alone, in patches."""
    states = {"math": tuned(model, 1), "code": tuned(model, 2)}
    own = dict(model.named_parameters())
    for name, value in states["math"].items():
        if value.dim() == 2:
            value[::3] = own[name].detach()[::3]
    if text == "emr":
        return emr_packed(model, states)
    return {label: packed(model, state, text) for label, state in states.items()}


@pytest.mark.parametrize("text", [*TEXTS, "emr"])
@torch.no_grad()
def test_logits_are_those_of_the_unpacked_models(model: Any, text: str) -> None:
    deltas = two(model, text)
    base = model(IDS).logits
    right: dict[str | None, Any] = {k: unpacked(model, d)(IDS).logits for k, d in deltas.items()} | {
        None: base
    }
    assert not torch.allclose(right["math"], base, atol=1e-2)
    runtime = attach(model, deltas)
    try:
        assert torch.equal(model(IDS).logits, base)
        for label in right:
            with runtime.use(label):
                torch.testing.assert_close(model(IDS).logits, right[label], **CLOSE)
        for rows in (("math", None, "code", "math"), ("code", "math", "math", "code"), (None,) * 4):
            with runtime.rows(rows):
                found = model(IDS).logits
            for i, label in enumerate(rows):
                torch.testing.assert_close(found[i], right[label][i], **CLOSE)
        assert torch.equal(model(IDS).logits, base)
    finally:
        runtime.detach()


@pytest.mark.parametrize("text", ["bitdelta", "magnitude_blocks"])
@torch.no_grad()
def test_generation_is_that_of_the_unpacked_models(model: Any, text: str) -> None:
    deltas = two(model, text)
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    plain = {k: unpacked(model, d).generate(IDS, **options) for k, d in deltas.items()}
    plain[None] = model.generate(IDS, **options)
    beams = unpacked(model, deltas["code"]).generate(IDS, num_beams=3, num_return_sequences=2, **options)
    runtime = attach(model, deltas)
    try:
        rows = ("math", "code", None, "code")
        for cache in (True, False):
            with runtime.rows(rows):
                found = model.generate(IDS, use_cache=cache, **options)
            for i, label in enumerate(rows):
                assert torch.equal(found[i], plain[label][i])
        with runtime.rows(("math", "code", None, "code")):
            repeated = model.generate(IDS, num_beams=3, num_return_sequences=2, **options)
        assert torch.equal(repeated[2:4], beams[2:4])
        assert torch.equal(repeated[6:8], beams[6:8])
        assert not torch.equal(repeated, beams)
    finally:
        runtime.detach()


@torch.no_grad()
def test_each_delta_may_have_codecs_of_its_own(model: Any) -> None:
    texts = {"a": "bitdelta", "b": "low_rank:rank=2", "c": "claq:bits=2", "d": "lossless"}
    deltas = {k: packed(model, tuned(model, i), t) for i, (k, t) in enumerate(texts.items())}
    right = {k: unpacked(model, d)(IDS).logits for k, d in deltas.items()}
    runtime = attach(model, deltas)
    try:
        with runtime.rows(("d", "a", "c", "b")):
            found = model(IDS).logits
        for i, label in enumerate("dacb"):
            torch.testing.assert_close(found[i], right[label][i], **CLOSE)
    finally:
        runtime.detach()


@torch.no_grad()
def test_matrices_may_stay_packed(model: Any) -> None:
    deltas = two(model, "claq:bits=3")
    right = {k: unpacked(model, d)(IDS).logits for k, d in deltas.items()}
    dense = attach(model, deltas)
    held = dense.total_nbytes
    dense.detach()
    runtime = attach(model, deltas, others="packed")
    try:
        assert runtime.total_nbytes < held
        with runtime.rows(("code", "math", None, "code")):
            found = model(IDS).logits
        for i, label in ((0, "code"), (1, "math"), (3, "code")):
            torch.testing.assert_close(found[i], right[label][i], **CLOSE)
    finally:
        runtime.detach()


@torch.no_grad()
def test_exact_codecs_compute_to_the_bit_in_bfloat16(model: Any) -> None:
    half = llama().to(torch.bfloat16)
    delta = packed(half, tuned(half, 4), "lossless")
    right = unpacked(half, delta)(IDS).logits
    runtime = attach(half, {"exact": delta})
    with runtime.use("exact"):
        assert torch.equal(half(IDS).logits, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_16_bit_models_differ_by_roundings_only(dtype: torch.dtype) -> None:
    half = llama().to(dtype)
    for text in ("bitdelta", "low_rank:rank=4", "sparse"):
        delta = packed(half, tuned(half, 4), text)
        wide = llama().to(dtype).float()
        exact = unpacked(wide, HeldDelta({n: t for n, t in delta.tensors.items() if t[0].domain == "delta"}))
        state = {n: t for n, t in delta.tensors.items() if t[0].domain == "stored"}
        exact.load_state_dict(
            {n: p.float() for n, p in unpacked(half, HeldDelta(state)).state_dict().items() if n in state},
            strict=False,
        )
        right = exact(IDS).logits
        runtime = attach(half, {"fine": delta})
        with runtime.use("fine"):
            found = half(IDS).logits
        runtime.detach()
        assert found.dtype == dtype
        near = (found.float() - right).norm() / right.norm()
        rounded = unpacked(half, delta)(IDS).logits.float()
        assert near < 2 * (rounded - right).norm() / right.norm() + 1e-3


@torch.no_grad()
def test_many_tokens_and_few_give_the_same(model: Any) -> None:
    delta = packed(model, tuned(model, 1), "bitdelta")
    twin = unpacked(model, delta)
    ids = torch.arange(60).reshape(2, 30) % 50
    runtime = attach(model, {"math": delta})
    try:
        with runtime.use("math"):
            for part in (ids[:1, :1], ids[:1, :9], ids):
                torch.testing.assert_close(model(part).logits, twin(part).logits, **CLOSE)
    finally:
        runtime.detach()


@torch.no_grad()
def test_detaching_restores_the_same_objects_and_bits() -> None:
    model = llama()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(IDS).logits
    runtime = attach(model, two(model, "bitdelta"))
    assert list(model.state_dict()) == list(state)
    assert [n for n, _ in model.named_modules()] == list(modules)
    with runtime.rows(("math", None, "code", "math")):
        model(IDS)
        model.generate(IDS, max_new_tokens=2)
    for name, value in model.named_parameters():
        assert value is parameters[name]
    runtime.detach()
    runtime.detach()
    for name, value in model.named_modules():
        assert value is modules[name]
    for name, value in model.named_parameters():
        assert value is parameters[name]
        assert torch.equal(value, state[name])
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(IDS).logits, before)
    with pytest.raises(RefusedError, match="the deltas were detached; attach them again"):
        runtime.switch("math")


@torch.no_grad()
def test_tied_embeddings_change_in_both_places() -> None:
    for text in ("bitdelta", "lossless"):
        model = llama(tie_word_embeddings=True)
        delta = packed(model, tuned(model, 5), text)
        assert "lm_head.weight" not in delta.names
        right = unpacked(model, delta)(IDS).logits
        runtime = attach(model, {"fine": delta})
        assert model.lm_head.weight is model.model.embed_tokens.weight
        with runtime.rows(("fine", None, "fine", None)):
            torch.testing.assert_close(model(IDS).logits[::2], right[::2], **CLOSE)
        own = model.model.embed_tokens.weight.numel() * 4
        assert runtime.nbytes["fine"] < (own * 2 if text == "lossless" else own) + 70_000
        runtime.detach()
        assert model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
def test_a_head_that_was_untied_has_its_own_values() -> None:
    model = llama(tie_word_embeddings=True)
    state = tuned(model, 5) | {"lm_head.weight": torch.randn(50, 24)}
    delta = packed(model, state, "lossless")
    twin = unpacked(llama(tie_word_embeddings=False), HeldDelta({}))
    twin.load_state_dict(state)
    runtime = attach(model, {"fine": delta})
    with runtime.use("fine"):
        torch.testing.assert_close(model(IDS).logits, twin(IDS).logits, **CLOSE)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 20), (64, 31)], ids=str)
@pytest.mark.parametrize("text", ["bitdelta", "residual_bits:passes=2", "low_rank:rank=1", "sparse", "dense"])
@torch.no_grad()
def test_plain_modules_of_any_size(shape: tuple[int, int], text: str) -> None:
    torch.manual_seed(0)
    wide, narrow = shape
    model = nn.Sequential(
        nn.Linear(narrow, wide), nn.ReLU(), nn.LayerNorm(wide), nn.Linear(wide, 3, bias=False)
    )
    deltas = {str(i): packed(model, tuned(model, i, 0.5), text) for i in range(3)}
    x = torch.randn(6, narrow)
    right = {label: unpacked(model, delta)(x) for label, delta in deltas.items()} | {None: model(x)}
    runtime = attach(model, deltas)
    rows = ("2", "0", None, "2", "1", "0")
    with runtime.rows(rows):
        found = model(x)
        again = model(x.reshape(6, 1, narrow).expand(6, 40, narrow))[:, 7]
    for i, label in enumerate(rows):
        torch.testing.assert_close(found[i], right[label][i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again[i], right[label][i], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_gpt2_with_conv1d_and_positions() -> None:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=12, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for text in (
        "bitdelta",
        "bitdelta:scale=row",
        "low_rank:rank=2",
        "sparse",
        "residual_bits:passes=2",
        "dense",
    ):
        deltas = {str(i): packed(model, tuned(model, i), text) for i in range(2)}
        right = {label: unpacked(model, delta)(IDS).logits for label, delta in deltas.items()}
        runtime = attach(model, deltas)
        for label in deltas:
            with runtime.use(label):
                torch.testing.assert_close(model(IDS).logits, right[label], **CLOSE)
        with runtime.rows(("1", "0", None, "1")):
            found = model(IDS).logits
        runtime.detach()
        for i, label in ((0, "1"), (1, "0"), (3, "1")):
            torch.testing.assert_close(found[i], right[label][i], **CLOSE)


@torch.no_grad()
def test_mixtures_of_experts_and_biases() -> None:
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    qwen = transformers.Qwen2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    for model in (transformers.MixtralForCausalLM(config).eval(), transformers.Qwen2ForCausalLM(qwen).eval()):
        deltas = {str(i): packed(model, tuned(model, i), "bitdelta") for i in range(2)}
        right = {label: unpacked(model, delta)(IDS).logits for label, delta in deltas.items()} | {
            None: model(IDS).logits
        }
        runtime = attach(model, deltas)
        rows = ("1", "0", None, "1")
        with runtime.rows(rows):
            found = model(IDS).logits
        for i, label in enumerate(rows):
            torch.testing.assert_close(found[i], right[label][i], **CLOSE)
        with runtime.use("0"):
            torch.testing.assert_close(model(IDS).logits, right["0"], **CLOSE)


@torch.no_grad()
def test_images_too() -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    model = transformers.CLIPVisionModel(config).eval()
    deltas = {str(i): packed(model, tuned(model, i), "bitdelta") for i in range(2)}
    x = torch.randn(3, 3, 8, 8)
    right = {label: unpacked(model, delta)(x).pooler_output for label, delta in deltas.items()}
    right[None] = model(x).pooler_output
    runtime = attach(model, deltas)
    with runtime.rows(("1", None, "0")):
        found = model(x).pooler_output
    for i, label in enumerate(("1", None, "0")):
        torch.testing.assert_close(found[i], right[label][i], **CLOSE)
