"""Tiny Hugging Face model folders, recipes that merge them, and the command line called in this process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

BF16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = {"bfloat16": BF16, "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
HIDDEN, INTER, VOCAB = 16, 24, 40

Arrays = dict[str, np.ndarray]


def shapes(
    layers: int = 2, hidden: int = HIDDEN, inter: int = INTER, vocab: int = VOCAB
) -> dict[str, tuple[int, ...]]:
    """Name the tensors of a small Llama."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}"
        found |= {f"{at}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        found |= {f"{at}.mlp.{p}_proj.weight": (inter, hidden) for p in ("gate", "up")}
        found |= {
            f"{at}.mlp.down_proj.weight": (hidden, inter),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def draw(seed: int, spread: float = 0.1, **sizes: int) -> Arrays:
    """Draw the weights of a small Llama, float32."""
    rng = np.random.default_rng(seed)
    return {n: (rng.normal(size=s) * spread).astype(np.float32) for n, s in shapes(**sizes).items()}


def tuned(base: Arrays, seed: int, spread: float = 0.01) -> Arrays:
    """Move every weight of a base a little."""
    rng = np.random.default_rng(1000 + seed)
    return {n: (a + rng.normal(size=a.shape) * spread).astype(np.float32) for n, a in base.items()}


def stored(arrays: Mapping[str, np.ndarray], dtype: str) -> Arrays:
    """Round float32 arrays to a storage type; others stay."""
    return {n: a.astype(DTYPES[dtype]) if a.dtype == np.float32 else a for n, a in arrays.items()}


def config(**changes: Any) -> dict[str, Any]:
    """Return the config.json of the small Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | changes


def tokenizer(words: int = VOCAB, shift: int = 0) -> dict[str, Any]:
    """Return a tokenizer.json whose token i is `w{i}`; `shift` gives the same words other numbers."""
    vocab = {f"w{i}": (i + shift) % words for i in range(words)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    }


def write_model(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    dtype: str = "bfloat16",
    *,
    shards: int = 1,
    settings: Mapping[str, Any] | None = None,
    tokens: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder: config, tokenizer, weights in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(config(torch_dtype=dtype) if settings is None else settings, indent=2)
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer() if tokens is None else tokens))
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}\n')
    values = stored(arrays, dtype)
    if shards == 1:
        save_file(values, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    homes = {tensor: names[i * shards // len(values)] for i, tensor in enumerate(values)}
    for name in names:
        save_file({t: a for t, a in values.items() if homes[t] == name}, folder / name, {"format": "pt"})
    total = sum(a.nbytes for a in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_fp8(folder: Path, arrays: Mapping[str, np.ndarray], block: int = 8, scaled: bool = True) -> Arrays:
    """Write a model whose projections are fp8 with block scales; return the values that a reader must see."""
    written: Arrays = {}
    seen: Arrays = {}
    for name, array in arrays.items():
        if not name.endswith("_proj.weight"):
            written[name] = array.astype(BF16)
            seen[name] = written[name].astype(np.float32)
            continue
        rows, columns = array.shape
        grid = np.zeros((-(-rows // block), -(-columns // block)), np.float32)
        whole = np.zeros_like(array)
        values = np.zeros(array.shape, FP8)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
                grid[i, j] = np.abs(array[at]).max() / 448.0
                values[at] = (array[at] / grid[i, j]).astype(FP8)
                whole[at] = values[at].astype(np.float32) * grid[i, j]
        written[name] = values
        if scaled:
            written[f"{name}_scale_inv"] = grid
        seen[name] = whole
    quantised = {"quant_method": "fp8", "weight_block_size": [block, block]}
    write_model(folder, {}, settings=config(quantization_config=quantised))
    save_file(written, folder / "model.safetensors", {"format": "pt"})
    return seen


def write_adapter(
    folder: Path, base: Mapping[str, np.ndarray], seed: int, *, rank: int = 2, alpha: int = 4, **changes: Any
) -> Arrays:
    """Write a PEFT adapter of the attention's q and v projections; return the dense deltas it stands for."""
    rng = np.random.default_rng(seed)
    factors: Arrays = {}
    dense: Arrays = {}
    for name, array in base.items():
        if not name.endswith(("q_proj.weight", "v_proj.weight")):
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a = (rng.normal(size=(rank, array.shape[1])) * 0.05).astype(np.float32)
        b = (rng.normal(size=(array.shape[0], rank)) * 0.05).astype(np.float32)
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        dense[name] = (alpha / rank) * (b.astype(np.float64) @ a.astype(np.float64))
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "someone/base",
        "bias": "none",
    } | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    return dense


def read_model(folder: Path) -> Arrays:
    """Load every tensor of a folder with the safetensors package, as stored."""
    found: Arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                assert name not in found
                found[name] = file.get_tensor(name)
    return found


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes on disk, and the values that were written."""

    root: Path
    base: Arrays
    tunes: tuple[Arrays, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the folder names of the fine-tunes."""
        return tuple(f"m{i}" for i in range(len(self.tunes)))

    def recipe(self, name: str = "recipe.yaml", **fields: Any) -> Path:
        """Write a recipe over all models; `fields` replace or add to `base` and `models`."""
        models = [{"model": f"./{label}", "label": label} for label in self.labels]
        return write_recipe(self.root / name, {"base": "./base", "models": models} | fields)


def family(root: Path, experts: int = 3, dtype: str = "bfloat16", *, shards: int = 1, **sizes: int) -> Family:
    """Write `base`, `m0`, `m1`, … under `root`."""
    base = draw(0, **sizes)
    tunes = tuple(tuned(base, i) for i in range(experts))
    write_model(root / "base", base, dtype, shards=shards)
    for i, tune in enumerate(tunes):
        write_model(root / f"m{i}", tune, dtype, shards=shards)
    return Family(root, base, tunes)


class _Plain(yaml.SafeDumper):
    """Writes a value out as often as it occurs: recipes know no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_recipe(path: Path, mapping: Mapping[str, Any]) -> Path:
    """Write a recipe as YAML; a field whose value is None is left out."""
    given = {k: v for k, v in mapping.items() if v is not None}
    path.write_text(yaml.dump(given, Dumper=_Plain, sort_keys=False))
    return path


@dataclass(frozen=True)
class Result:
    """What a command has said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Parse standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """Return the lines of standard error that report an error, with what follows each."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def run(*arguments: object) -> Result:
    """Call the command line in this process."""
    from deltasmith.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as done:
            code = done.code
    return Result(code or 0, out.getvalue(), err.getvalue())


COMMAND = (sys.executable, "-c", "from deltasmith.cli.main import main; main()")
SOURCE = str(Path(__file__).parent.parent / "src")


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a command in a process of its own."""
    return os.environ | {"PYTHONPATH": SOURCE, "PYTHONWARNINGS": "error"} | changes


def spawn(
    *arguments: object, cwd: Path | None = None, prefix: Callable[[], None] | None = None, **env: str
) -> Result:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=cwd,
        env=environment(**env),
        preexec_fn=prefix,
        timeout=240,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def start(*arguments: object, **env: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own and return at once."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    )


def tree(root: Path) -> dict[str, str]:
    """Hash every file under a folder: relative name → sha256; folders and links by name."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        regular = path.is_file() and not path.is_symlink()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if regular else "not a file"
    return found


def hashes(out: Path) -> dict[str, str]:
    """Return the hash of every tensor, as the manifest gives it."""
    tensors = json.loads((out / "manifest.json").read_text())["tensors"]
    return {name: entry["xxh3_128"] for name, entry in tensors.items()}


def neighbours(out: Path) -> list[str]:
    """List what beside an output bears its name: partial folders, locks, swapped-out models."""
    return sorted(p.name for p in out.parent.iterdir() if p.name.startswith(out.name) and p.name != out.name)


def assert_refused(
    code: int, recipe: object, *words: str, inputs: Path | None = None, plan: bool = True
) -> Result:
    """Merge a recipe that must be refused, and check all that a refusal promises; return what it said.

    One `error:` line (of recipe problems: a line each) that holds `words`, nothing under or beside OUT, the
    inputs as they were; and `plan` says the same, where headers and recipe show the fault.
    """
    recipe = Path(str(recipe))
    inputs = recipe.parent if inputs is None else inputs
    before = tree(inputs)
    place = Path(tempfile.mkdtemp(prefix="place-", dir=inputs.parent))
    result = run("merge", recipe, place / "out", "--quiet")
    check_refusal(result, code, *words)
    assert list(place.iterdir()) == []
    assert tree(inputs) == before
    if plan:
        planned = run("plan", recipe)
        assert (planned.code, planned.err) == (result.code, result.err)
        assert planned.out == ""
    return result


def check_refusal(result: Result, code: int, *words: str) -> None:
    """Check the exit code and the shape of the message."""
    assert result.code == code, result
    assert result.out == ""
    assert len(result.errors) == 1, result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    lines = result.err.removesuffix("\n").split("\n")
    if code != 2:
        assert len(lines) == 1, lines
    assert all(line.isprintable() for line in lines)
    for word in words:
        assert word in result.err, result.err
