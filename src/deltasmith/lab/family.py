"""Build a family: one base, and in every regime one expert for each task, as Hugging Face folders.

The seed, the size, the schedules and the version of torch decide the weights but for last bits: these differ between
kinds of processors, and now and then between two runs on one, because sums in torch's matrix products depend on how
memory happens to be aligned. Weights are rounded to bfloat16 once after pre-training and once after fine-tuning, and
every expert starts from the rounded base, so that expert minus base is what fine-tuning changed.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deltasmith.errors import MissingExtraError, RefusedError
from deltasmith.lab import EXPERTS, REGIMES, tasks
from deltasmith.lab.bench import held_out_items
from deltasmith.lab.network import initial, shape_of
from deltasmith.lab.tokens import BOS, EOS, PAD, CharTokenizer
from deltasmith.lab.train import SCHEDULES, Schedule, finetuning_rows, pretraining_rows, train

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Wanted", "build_family", "delta_statistics"]

_HELD_OUT: Mapping[tasks.Split, int] = MappingProxyType({"test": 200, "validation": 120})
_RECORD = "RECORD.json"


@dataclass(frozen=True)
class Wanted:
    """What to build: the seed decides data, order and first weights; `base_steps` shortens pre-training."""

    seed: int = 0
    size: str = "S"
    regimes: tuple[str, ...] = REGIMES
    base_steps: int = SCHEDULES["base"].steps
    device: str = "cpu"
    threads: int = 1

    def schedule(self, label: str) -> Schedule:
        """Return the schedule of `base` or of `REGIME/TASK`."""
        found = SCHEDULES[label.split("/")[0]]
        return replace(found, steps=self.base_steps) if label == "base" else found

    def record(self) -> dict[str, Any]:
        """Write down everything that decides the weights."""
        import torch

        return {
            "format": 1,
            "seed": self.seed,
            "size": self.size,
            "shape": asdict(shape_of(self.size)),
            "torch": torch.__version__.split("+")[0],
            "schedules": {name: asdict(self.schedule(name)) for name in ("base", *self.regimes)},
            "styles": {task: list(styles) for task, styles in tasks.STYLES.items()},
            "held_out": dict(_HELD_OUT),
        }


def build_family(
    out: Path, wanted: Wanted, jobs: int = 1, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train what `out` does not hold yet and return its `RECORD.json`; experts train `jobs` at a time.

    A model's folder appears when it is finished, so an interrupted build goes on where it stopped. Raises
    RefusedError where `out` was built from another seed, size or schedule, MissingExtraError without torch.
    """
    try:
        record = wanted.record()
    except ModuleNotFoundError as cause:
        raise MissingExtraError("training needs torch", fix="run: pip install 'deltasmith[lab]'") from cause
    out.mkdir(parents=True, exist_ok=True)
    record = _continued(out, record)
    _write_items(out / "items", wanted.seed)
    if "base" not in record["accuracy"]:
        _note(out, record, "base", _train_base(out, wanted, say), say)
    todo = [f"{regime}/{task}" for regime in wanted.regimes for task in EXPERTS]
    todo = [label for label in todo if label not in record["accuracy"]]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context) as pool:
        running = {pool.submit(_train_expert, out, wanted, label): label for label in todo}
        for done in as_completed(running):
            _note(out, record, running[done], done.result(), say)
    return record


def _continued(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Take over the record of an earlier build, unless that was of something else."""
    path = out / _RECORD
    if not path.exists():
        if any(out.iterdir()):
            raise RefusedError("it holds no family", where=str(out), fix="name an empty or a new folder")
        return {**record, "accuracy": {}, "deltas": {}, "losses": {}}
    before = json.loads(path.read_text(encoding="utf-8"))
    shared = before["schedules"].keys() & record["schedules"].keys()
    same = all(before["schedules"][name] == record["schedules"][name] for name in shared)
    different = [key for key in record if key != "schedules" and before.get(key) != record[key]]
    if different or not same:
        raise RefusedError(
            f"it holds a family with another {', '.join(different) or 'schedule'}",
            where=str(out),
            fix="build into another folder",
        )
    return {**before, "schedules": {**before["schedules"], **record["schedules"]}}


def _note(
    out: Path, record: dict[str, Any], label: str, found: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Add one model's figures to the record on disk."""
    for key, value in found.items():
        if key == "parameters":
            record[key] = value
        else:
            record[key][label] = value
    _write_json(out / _RECORD, record)
    say(f"{label}: accuracy {found['accuracy']}")


def _train_base(out: Path, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    tokenizer, shape = CharTokenizer.standard(), shape_of(wanted.size)
    start = initial(shape, len(tokenizer.vocab), wanted.seed)
    rows = pretraining_rows(tokenizer, Random(f"{wanted.seed} base"))
    found = _train(out, wanted, "base", start, rows, say)[1]
    return {**found, "parameters": sum(value.numel() for value in start.values())}


def _train_expert(out: Path, wanted: Wanted, label: str) -> dict[str, Any]:
    """Fine-tune one expert from the base on disk; runs in a process of its own."""
    from safetensors.torch import load

    base = {
        name: value.float() for name, value in load((out / "base/model.safetensors").read_bytes()).items()
    }
    task = label.split("/")[1]
    rows = finetuning_rows(CharTokenizer.standard(), task, Random(f"{wanted.seed} {label}"))
    expert, found = _train(out, wanted, label, base, rows, _silent)
    return {**found, "deltas": delta_statistics(base, expert)}


def _silent(line: str) -> None:
    pass


def _train(
    out: Path, wanted: Wanted, label: str, start: Mapping[str, Tensor], rows: Any, say: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import torch

    torch.set_num_threads(wanted.threads)
    torch.use_deterministic_algorithms(wanted.device == "cpu")
    shape, order = shape_of(wanted.size), Random(f"{wanted.seed} {label} order")
    params, losses = train(start, shape, wanted.schedule(label), rows, order, say, wanted.device)
    _write_model(out / label, params, wanted)
    return params, {"losses": losses, "accuracy": _accuracy(out / label, out / "items")}


def _write_model(folder: Path, params: Mapping[str, Tensor], wanted: Wanted) -> None:
    """Write `params` in bfloat16 with config and tokenizer files; the folder appears whole."""
    from safetensors.torch import save

    tokenizer, shape = CharTokenizer.standard(), shape_of(wanted.size)
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    rounded = {name: value.bfloat16() for name, value in params.items()}
    # Not save_file: it would leave a file that only its owner can read.
    (partial / "model.safetensors").write_bytes(save(rounded, {"format": "pt"}))
    _write_json(partial / "config.json", shape.config(len(tokenizer.vocab)))
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    _write_json(partial / "generation_config.json", special)
    for name, content in tokenizer.files(shape.context).items():
        _write_json(partial / name, content)
    partial.replace(folder)


def _write_items(folder: Path, seed: int) -> None:
    """Write the test and validation items of every task, one JSON object per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in _HELD_OUT.items():
        for task in EXPERTS:
            lines = [json.dumps(asdict(item)) for item in held_out_items(task, split, seed, count)]
            name = f"{task}.jsonl" if split == "test" else f"{split}_{task}.jsonl"
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def delta_statistics(base: Mapping[str, Tensor], expert: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure expert - base over all values: mean and 99th percentile of size, share of zeros, norm ratio."""
    import torch

    flat = torch.cat([value.flatten() for value in base.values()]).double()
    delta = torch.cat([expert[name].flatten() for name in base]).double() - flat
    ordered = delta.abs().sort().values  # `quantile` refuses more than 16 million values
    return {
        "mean_abs": float(f"{delta.abs().mean().item():.4g}"),
        "p99_abs": float(f"{ordered[int(0.99 * (ordered.numel() - 1))].item():.4g}"),
        "zero_share": round((delta == 0).double().mean().item(), 4),
        "norm_ratio": round((delta.norm() / flat.norm()).item(), 4),
    }


def _accuracy(folder: Path, items: Path) -> dict[str, float]:
    from deltasmith.evaluate.items import load_suite, score
    from deltasmith.evaluate.llama import load_folder

    return score(load_folder(folder), CharTokenizer.load(folder), load_suite(items, EXPERTS)).accuracy
