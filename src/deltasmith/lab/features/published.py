"""The paper's own models and texts by hub id: fetched when a user asks, and only then.

Niels Horn and Desmond Elliott, "Tracking Universal Features Through Fine-Tuning and Model Merging", arXiv 2410.12391.
The ids are of the authors' public repositories (MIT licensed code at github.com/nilq/feature-dynamics). Nothing of
them is in this repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deltasmith.errors import DamagedInputError, MissingExtraError, printable
from deltasmith.lab.features.plan import Sizes, Subjects

__all__ = ["PRESETS", "Fetch", "Preset", "fetched", "from_hub", "subjects_of"]

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "base": "nilq/baby-python-mistral-1L-tiny-base",
        "lua": "nilq/baby-python-mistral-1L-tiny-lua-ft",
        "stories": "nilq/baby-python-mistral-1L-tiny-TinyStories-ft",
        "merged": "nilq/baby-python-1L-mistral-lua-stories-slerp",
    }
)
DATA: Mapping[str, str] = MappingProxyType(
    {"baby-python": "nilq/baby-python", "lua": "nilq/small-lua-stack", "stories": "roneneldan/TinyStories"}
)
"""English and Python are one data set there, and so one domain."""
_COLUMNS = ("text", "content")
_SPLITS = ("validation", "valid", "test", "train")
"""Files of held-back text come first: the models have not learnt from them."""

Fetch = Callable[[str, str], Path]
"""Makes a local folder of a hub id: (id, "model" or "dataset")."""


@dataclass(frozen=True)
class Preset:
    """One size of the experiment on the published models: dictionaries, threads, and characters of each text."""

    sizes: Sizes
    device: str
    characters: int
    seeds: tuple[int, ...]
    floors: str = "root"


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper-cpu": Preset(
            # 4,096 latents, 3.1 million activations for the root's dictionary, a sixth for a child's.
            Sizes(
                latents="4x", k=32, steps=3_000, batch=1024, held_out_tokens=100_000, train_tokens=1_000_000
            ),
            device="cpu",
            characters=3_000_000,
            seeds=(0,),
        ),
        "paper-gpu": Preset(
            # The paper's 16,384 latents; 61 million activations; three seeds of the dictionaries.
            Sizes(
                latents="16x",
                k=32,
                steps=30_000,
                batch=2048,
                held_out_tokens=240_000,
                train_tokens=30_000_000,
            ),
            device="cuda",
            characters=60_000_000,
            seeds=(0, 1, 2),
            floors="all",
        ),
    }
)
"""A dictionary of 16 times the width and 100,000 tokens on two cores would take hours; on a GPU it is minutes."""


def from_hub(name: str, kind: str) -> Path:
    """Fetch a repository of the Hugging Face hub into its cache: of a data set the first file of held-back text.

    Raises MissingExtraError without huggingface_hub, DamagedInputError where it cannot be reached.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ModuleNotFoundError as cause:
        raise MissingExtraError(
            "huggingface_hub is not installed", fix='pip install "deltasmith[features]"'
        ) from cause
    problems = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)
    try:
        if kind == "model":
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model"]))
        files = HfApi().list_repo_files(name, repo_type="dataset")
        chosen = _chosen(sorted(file for file in files if file.endswith((".parquet", ".txt", ".jsonl"))))
        if chosen is None:
            raise DamagedInputError(
                "the data set has no files of text", where=name, fix="see its page on the hub"
            )
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=[chosen]))
    except problems as cause:
        first = printable(
            str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__, 120
        )
        raise DamagedInputError(
            f"the hub cannot be asked for it ({first})", where=name, fix="go online, or leave --preset out"
        ) from cause


def subjects_of(preset: Preset, folder: Path, fetch: Fetch = from_hub) -> Subjects:
    """Fetch the models and texts, write the texts below `folder`, and return what the experiment runs on.

    A model that nothing has trained is drawn beside them, with the base's configuration.
    """
    models = {label: fetch(name, "model") for label, name in MODELS.items()}
    corpora = {
        domain: fetched(folder / "texts", domain, name, preset, fetch) for domain, name in DATA.items()
    }
    control = folder / "random"
    if not control.is_dir():
        _untrained(models["base"], control)
    return Subjects(
        models=models,
        corpora=corpora,
        parents=("lua=base", "stories=base", "merged=lua,stories@base"),
        control=control,
        facts={"models": dict(MODELS), "data": dict(DATA)},
    )


def fetched(folder: Path, domain: str, name: str, preset: Preset, fetch: Fetch) -> Path:
    """Write the first `preset.characters` of a data set as one JSON object a line, and return the file."""
    path = folder / f"{domain}.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    lines, room = [], preset.characters
    for text in _texts(fetch(name, "dataset"), name):
        lines.append(json.dumps({"text": text[:room]}, ensure_ascii=False) + "\n")
        room -= len(text)
        if room <= 0:
            break
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
    return path


def _chosen(files: list[str]) -> str | None:
    for split in _SPLITS:
        found = [file for file in files if split in file.lower()]
        if found:
            return found[0]
    return files[0] if files else None


def _texts(folder: Path, name: str) -> Iterator[str]:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    chosen = _chosen([file for file in files if file.endswith((".parquet", ".txt", ".jsonl"))])
    if chosen is None:
        raise DamagedInputError(
            "the data set has no files of text", where=name, fix="see its page on the hub"
        )
    path = folder / chosen
    if path.suffix == ".parquet":
        yield from _of_table(path, name)
    elif path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            yield _text_of(json.loads(line), name)
    else:
        yield from filter(str.strip, path.read_text(encoding="utf-8").split("<|endoftext|>"))


def _of_table(path: Path, name: str) -> Iterator[str]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ModuleNotFoundError as cause:
        raise MissingExtraError("reading parquet files needs pyarrow", fix="pip install pyarrow") from cause
    table = parquet.ParquetFile(path)
    column = next((one for one in _COLUMNS if one in table.schema_arrow.names), None)
    if column is None:
        raise _no_text(name, table.schema_arrow.names)
    for batch in table.iter_batches(columns=[column]):
        yield from filter(None, batch.column(0).to_pylist())


def _text_of(entry: Mapping[str, Any], name: str) -> str:
    column = next((one for one in _COLUMNS if one in entry), None)
    if column is None:
        raise _no_text(name, list(entry))
    return str(entry[column])


def _no_text(name: str, columns: list[str]) -> DamagedInputError:
    return DamagedInputError(
        f"it has columns {', '.join(columns)}, and none is {' or '.join(_COLUMNS)}",
        where=name,
        fix="see its page",
    )


def _untrained(base: Path, out: Path) -> None:
    """Write a model of the base's configuration with weights that nothing has trained, and the base's tokenizer."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        draw: Any = AutoModelForCausalLM.from_config
        model = draw(AutoConfig.from_pretrained(base), dtype=torch.float32)
    partial = out.with_name("random.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for file in sorted(base.glob("*token*")):
        shutil.copy(file, partial / file.name)
    partial.replace(out)
