"""Train the bundled family: one base, and per regime one expert for each task; writes Hugging Face folders.

Run `python -m deltasmith.lab.train --out DIR` (needs torch). No merging and no comparison of methods here.

`--seed`, the sizes below and the version of torch decide the result; on another kind of processor the last
bits differ. Weights are rounded to bfloat16 once after pre-training and once after fine-tuning, and every
expert starts from the rounded base, so that expert minus base is what fine-tuning changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deltasmith.errors import MissingExtraError
from deltasmith.lab import EXPERTS, REGIMES, tasks
from deltasmith.lab.tokens import BOS, EOS, PAD, CharTokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SCHEDULES",
    "SIZES",
    "Schedule",
    "Shape",
    "build_family",
    "delta_statistics",
    "forward",
    "main",
    "train",
]

_HELD_OUT: Mapping[tasks.Split, int] = MappingProxyType({"test": 200, "validation": 120})


@dataclass(frozen=True, slots=True)
class Shape:
    """Fix the width and depth of a Llama; `context` bounds the positions it is trained for."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    context: int = 96
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def config(self, vocab: int) -> dict[str, Any]:
        """Write the shape down as the `config.json` of a LlamaForCausalLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.norm_epsilon,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocab,
        }


@dataclass(frozen=True, slots=True)
class Schedule:
    """Fix one run of AdamW: the rate climbs over `warmup` steps to `rate`, then falls straight to a tenth."""

    steps: int
    rate: float
    warmup: int
    decay: float = 0.0
    batch: int = 64

    def rate_at(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        climb = min(1.0, (step + 1) / self.warmup)
        return self.rate * climb * (1.0 - 0.9 * step / self.steps)


SIZES: Mapping[str, Shape] = MappingProxyType(
    {
        "XS": Shape(hidden=32, inner=64, layers=2, heads=2, kv_heads=1),
        "S": Shape(hidden=96, inner=320, layers=4, heads=4, kv_heads=2),
        "M": Shape(hidden=192, inner=512, layers=6, heads=6, kv_heads=3),
    }
)
# The two regimes differ by about ten times in the size of their deltas: methods rank differently in them.
SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "base": Schedule(steps=3000, rate=3e-3, warmup=100, decay=0.1),
        "small": Schedule(steps=120, rate=3e-4, warmup=10),
        "large": Schedule(steps=300, rate=3e-3, warmup=10),
    }
)


def _initial(shape: Shape, vocab: int, seed: int) -> dict[str, Tensor]:
    import torch

    head = shape.hidden // shape.heads
    matrices = {
        "self_attn.q_proj": (shape.heads * head, shape.hidden),
        "self_attn.k_proj": (shape.kv_heads * head, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * head, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.heads * head),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, spread: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * spread

    params = {"model.embed_tokens.weight": normal(vocab, shape.hidden, 0.1)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in matrices.items():
            # What writes into the residual stream starts smaller, so that depth does not raise its variance.
            calm = (2 * shape.layers) ** -0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
            params[f"{prefix}{name}.weight"] = normal(rows, columns, calm * columns**-0.5)
        params[f"{prefix}input_layernorm.weight"] = torch.ones(shape.hidden)
        params[f"{prefix}post_attention_layernorm.weight"] = torch.ones(shape.hidden)
    params["model.norm.weight"] = torch.ones(shape.hidden)
    params["lm_head.weight"] = normal(vocab, shape.hidden, shape.hidden**-0.5)
    return params


def forward(params: Mapping[str, Tensor], shape: Shape, tokens: Tensor) -> Tensor:
    """Compute the logits of `tokens` `(batch, length) -> (batch, length, vocab)` with gradients.

    Padding belongs on the right, where causal attention keeps it from being seen.
    """
    import torch
    from torch.nn import functional

    size = shape.hidden // shape.heads
    inverse = shape.rope_theta ** (-torch.arange(0, size, 2) / size)
    angle = torch.arange(tokens.shape[1])[:, None] * inverse  # (length, size / 2)
    cos, sin = (torch.cat((part, part), -1) for part in (angle.cos(), angle.sin()))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, (shape.hidden,), params[f"{name}.weight"], shape.norm_epsilon)

    def heads(x: Tensor, name: str, turn: bool) -> Tensor:
        y = functional.linear(x, params[f"{name}.weight"])
        y = y.view(*x.shape[:2], -1, size).transpose(1, 2)
        if turn:
            low, high = y.chunk(2, -1)
            y = y * cos + torch.cat((-high, low), -1) * sin
        return y.repeat_interleave(shape.heads // y.shape[1], dim=1)  # (batch, heads, length, size)

    x = functional.embedding(tokens, params["model.embed_tokens.weight"])
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        y = norm(x, f"{at}input_layernorm")
        query, key, value = (heads(y, f"{at}self_attn.{one}_proj", one != "v") for one in "qkv")
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + functional.linear(mixed.transpose(1, 2).flatten(2), params[f"{at}self_attn.o_proj.weight"])
        y = norm(x, f"{at}post_attention_layernorm")
        gate = functional.silu(functional.linear(y, params[f"{at}mlp.gate_proj.weight"]))
        up = functional.linear(y, params[f"{at}mlp.up_proj.weight"])
        x = x + functional.linear(gate * up, params[f"{at}mlp.down_proj.weight"])
    return functional.linear(norm(x, "model.norm"), params["lm_head.weight"])


Row = tuple[list[int], int]  # token ids, and how many of them at the front carry no loss


def pretraining_rows(tokenizer: CharTokenizer, rng: Random) -> Iterator[Row]:
    """Yield documents between `<bos>` and `<eos>` without end; every token after the first is learnt."""
    for text in tasks.pretraining_text(rng):
        yield [BOS, *tokenizer.encode(text), EOS], 1


def finetuning_rows(tokenizer: CharTokenizer, task: str, rng: Random) -> Iterator[Row]:
    """Yield training problems of one task without end; only the answer and `<eos>` are learnt."""
    for example in tasks.examples(task, "train", rng):
        prompt = [BOS, *tokenizer.encode(f"{example.prompt}\n")]
        yield [*prompt, *tokenizer.encode(example.answer), EOS], len(prompt)


def _batches(rows: Iterator[Row], size: int, rng: Random) -> Iterator[list[Row]]:
    # Rows of like length share a batch, which spares a third of the arithmetic that padding would cost.
    while True:
        pool = sorted(itertools.islice(rows, 8 * size), key=lambda row: len(row[0]))
        cuts = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(cuts)
        yield from cuts


def _loss(params: Mapping[str, Tensor], shape: Shape, batch: list[Row]) -> Tensor:
    import torch
    from torch.nn import functional

    length = max(len(ids) for ids, _ in batch)
    tokens = torch.full((len(batch), length), PAD)
    targets = torch.full((len(batch), length), -100)  # -100: cross_entropy's ignore_index
    for index, (ids, silent) in enumerate(batch):
        row = torch.tensor(ids)
        tokens[index, : len(ids)] = row
        targets[index, silent - 1 : len(ids) - 1] = row[silent:]
    logits = forward(params, shape, tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), targets[:, :-1].flatten())


def train(
    params: Mapping[str, Tensor],
    shape: Shape,
    schedule: Schedule,
    rows: Iterator[Row],
    rng: Random,
    say: Callable[[str], None],
) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Follow the gradient from `params` and round the end point to bfloat16; `params` stay as they are.

    Returns the new tensors (float32 values that bfloat16 holds exactly) and `[step, loss]` pairs, each loss
    being the mean over the steps since the pair before.
    """
    import torch

    moving = {name: value.clone().requires_grad_() for name, value in params.items()}
    groups = [
        {"params": [value for value in moving.values() if value.ndim > 1], "weight_decay": schedule.decay},
        {"params": [value for value in moving.values() if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))
    every = max(1, schedule.steps // 20)
    recent: list[float] = []
    log: list[list[float]] = []
    for step, batch in enumerate(itertools.islice(_batches(rows, schedule.batch, rng), schedule.steps)):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = _loss(moving, shape, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            log.append([step + 1, round(math.fsum(recent) / len(recent), 4)])
            say(f"  step {step + 1:5d}  loss {log[-1][1]:.4f}")
            recent.clear()
    return {name: value.detach().bfloat16().float() for name, value in moving.items()}, log


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model(folder: Path, params: Mapping[str, Tensor], shape: Shape, tokenizer: CharTokenizer) -> None:
    """Write `params` in bfloat16 as a Hugging Face folder, with its config and tokenizer files."""
    from safetensors.torch import save

    folder.mkdir(parents=True)
    rounded = {name: value.bfloat16() for name, value in params.items()}
    # Not save_file: it would leave a file that only its owner can read.
    (folder / "model.safetensors").write_bytes(save(rounded, {"format": "pt"}))
    _write_json(folder / "config.json", shape.config(len(tokenizer.vocab)))
    _write_json(
        folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    )
    for name, content in tokenizer.files(shape.context).items():
        _write_json(folder / name, content)


def write_items(folder: Path, seed: int) -> None:
    """Write the test and validation items of every task, one JSON object per line."""
    folder.mkdir(parents=True)
    for split, count in _HELD_OUT.items():
        for task in EXPERTS:
            lines = []
            for n, example in enumerate(tasks.held_out(task, split, count, seed)):
                item = {"id": f"{task}-{split}-{n:03d}", "task": task}
                lines.append(json.dumps({**item, "prompt": f"{example.prompt}\n", "answer": example.answer}))
            name = f"{task}.jsonl" if split == "test" else f"{split}_{task}.jsonl"
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def delta_statistics(base: Mapping[str, Tensor], expert: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure expert - base over all values: mean and 99th percentile of size, share of zeros, norm ratio."""
    import torch

    flat = torch.cat([value.flatten() for value in base.values()]).double()
    delta = torch.cat([expert[name].flatten() for name in base]).double() - flat
    return {
        "mean_abs": float(f"{delta.abs().mean().item():.4g}"),
        "p99_abs": float(f"{delta.abs().quantile(0.99).item():.4g}"),
        "zero_share": round((delta == 0).double().mean().item(), 4),
        "norm_ratio": round((delta.norm() / flat.norm()).item(), 4),
    }


def _accuracy(folder: Path, items: Path) -> dict[str, float]:
    from deltasmith.evaluate.items import load_suite, score
    from deltasmith.evaluate.llama import load_folder

    return score(load_folder(folder), CharTokenizer.load(folder), load_suite(items, EXPERTS)).accuracy


def build_family(
    out: Path, size: str, regimes: tuple[str, ...], seed: int, base_steps: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train a base and its experts and write them under `out`, which must not exist; return `RECORD.json`."""
    import torch

    torch.use_deterministic_algorithms(True)
    tokenizer, shape = CharTokenizer.standard(), SIZES[size]
    schedules = {name: SCHEDULES[name] for name in ("base", *regimes)}
    schedules["base"] = replace(schedules["base"], steps=base_steps)
    record: dict[str, Any] = {"format": 1, "seed": seed, "size": size, "shape": asdict(shape)}
    record["torch"] = torch.__version__.split("+")[0]
    record["schedules"] = {name: asdict(schedule) for name, schedule in schedules.items()}
    record["styles"] = {task: list(styles) for task, styles in tasks.STYLES.items()}
    record |= {"held_out": dict(_HELD_OUT), "accuracy": {}, "deltas": {}, "losses": {}}
    out.mkdir(parents=True)
    write_items(out / "items", seed)

    def run(label: str, start: Mapping[str, Tensor], rows: Iterator[Row]) -> dict[str, Tensor]:
        say(label)
        schedule, order = schedules[label.split("/")[0]], Random(f"{seed} {label} order")
        params, record["losses"][label] = train(start, shape, schedule, rows, order, say)
        write_model(out / label, params, shape, tokenizer)
        record["accuracy"][label] = _accuracy(out / label, out / "items")
        say(f"  accuracy {record['accuracy'][label]}")
        return params

    start = _initial(shape, len(tokenizer.vocab), seed)
    record["parameters"] = sum(value.numel() for value in start.values())
    base = run("base", start, pretraining_rows(tokenizer, Random(f"{seed} base")))
    for regime, task in itertools.product(regimes, EXPERTS):
        label = f"{regime}/{task}"
        expert = run(label, base, finetuning_rows(tokenizer, task, Random(f"{seed} {label}")))
        record["deltas"][label] = delta_statistics(base, expert)
    _write_json(out / "RECORD.json", record)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m deltasmith.lab.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to create; it must not exist")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides data, order and first weights (default 0)"
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="S", help="XS to try things out, S as published"
    )
    parser.add_argument(
        "--regime", choices=(*REGIMES, "both"), default="both", help="how large the deltas become"
    )
    parser.add_argument(
        "--base-steps", type=int, default=SCHEDULES["base"].steps, help="shorten or lengthen pre-training"
    )
    parser.add_argument("--threads", type=int, default=1, help="1 gives the same bytes on every run")
    chosen = parser.parse_args(arguments)
    if chosen.out.exists():
        parser.error(f"--out {chosen.out} exists; name a folder that does not")
    try:
        import torch
    except ModuleNotFoundError as cause:
        raise MissingExtraError("training needs torch", fix="run: pip install 'deltasmith[lab]'") from cause
    torch.set_num_threads(chosen.threads)
    regimes = REGIMES if chosen.regime == "both" else (chosen.regime,)
    build_family(chosen.out, chosen.size, regimes, chosen.seed, chosen.base_steps, print)


if __name__ == "__main__":
    main()
