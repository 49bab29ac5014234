"""The recipes for real checkpoints plan on files of the real shapes, and say the right bytes and numbers.

The files are headers followed by holes: a 13B model takes a few KiB of disk, and no value is ever read.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from deltasmith import api
from deltasmith.api import Planned
from deltasmith.cli.main import group
from deltasmith.errors import RefusedError
from deltasmith.lab.published import (
    DELLA_ELECT,
    DELLA_NO_ELECT,
    DELLA_PRUNED,
    EMR_ABLATION,
    EMR_AVERAGES,
    EMR_LOGS,
    EMR_TASKS,
    FUSION_BENCH_CLIP,
    TIES_AVERAGES,
    Published,
    Row,
)
from models import family, hashes, run, shapes

ROOT = Path(__file__).parent.parent.parent
PAPER = ROOT / "lab" / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
PAGE = (PAPER / "README.md").read_text()

Shapes = Mapping[str, tuple[int, ...]]
BYTES = {"F16": 2, "F32": 4, "I64": 8}


def llama(hidden: int, inter: int, layers: int, vocab: int) -> Shapes:
    return shapes(layers=layers, hidden=hidden, inter=inter, vocab=vocab)


def tower(at: str, hidden: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for i in range(layers):
        layer = f"{at}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.self_attn.{name}.weight", (hidden, hidden)
            yield f"{layer}.self_attn.{name}.bias", (hidden,)
        for name, shape in (("fc1", (4 * hidden, hidden)), ("fc2", (hidden, 4 * hidden))):
            yield f"{layer}.mlp.{name}.weight", shape
            yield f"{layer}.mlp.{name}.bias", shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{name}.weight", (hidden,)
            yield f"{layer}.{name}.bias", (hidden,)


def vision() -> dict[str, tuple[int, ...]]:
    at = "vision_model"
    found: dict[str, tuple[int, ...]] = {
        f"{at}.embeddings.class_embedding": (768,),
        f"{at}.embeddings.patch_embedding.weight": (768, 3, 32, 32),
        f"{at}.embeddings.position_embedding.weight": (50, 768),
    }
    norms = (f"{at}.pre_layrnorm", f"{at}.post_layernorm")
    return (
        found
        | dict(tower(at, 768, 12))
        | {f"{n}.{part}": (768,) for n in norms for part in ("weight", "bias")}
    )


def clip() -> dict[str, tuple[int, ...]]:
    at = "text_model"
    return (
        vision()
        | dict(tower(at, 512, 12))
        | {
            "logit_scale": (),
            f"{at}.embeddings.token_embedding.weight": (49408, 512),
            f"{at}.embeddings.position_embedding.weight": (77, 512),
            f"{at}.final_layer_norm.weight": (512,),
            f"{at}.final_layer_norm.bias": (512,),
            "text_projection.weight": (512, 512),
            "visual_projection.weight": (512, 768),
        }
    )


LLAMA_13B = llama(5120, 13824, 40, 32000)
WIZARD_13B = llama(5120, 13824, 40, 32001)
LLAMA_7B = llama(4096, 11008, 32, 32000)
POSITIONS = {"vision_model.embeddings.position_ids": (1, 50), "text_model.embeddings.position_ids": (1, 77)}
EIGHT = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")

MODELS: dict[str, tuple[Shapes, str, str]] = {
    "meta-llama/Llama-2-13b-hf": (LLAMA_13B, "F16", "llama"),
    "WizardLMTeam/WizardLM-13B-V1.2": (LLAMA_13B, "F16", "llama"),
    "vanillaOVO/WizardMath-13B-V1.0": (WIZARD_13B, "F16", "llama"),  # it has a padding token of its own
    "layoric/llama-2-13b-code-alpaca": (LLAMA_13B, "F16", "llama"),
    "WizardLMTeam/WizardCoder-Python-13B-V1.0": (WIZARD_13B, "F16", "llama"),
    "meta-llama/Llama-2-7b-hf": (LLAMA_7B, "F16", "llama"),
    "GAIR/Abel-7B-001": (LLAMA_7B, "F16", "llama"),
    "openai/clip-vit-base-patch32": (clip() | POSITIONS, "F32", "clip"),
    **{f"tanganke/clip-vit-base-patch32_{t}": (vision(), "F32", "clip_vision_model") for t in EIGHT},
}


def write_hollow(folder: Path, tensors: Shapes, dtype: str, model_type: str) -> Path:
    """Write a model folder whose weights are all hole."""
    folder.mkdir(parents=True)
    header, at = {}, 0
    for name, shape in tensors.items():
        kind = "I64" if name.endswith("position_ids") else dtype
        size = math.prod(shape) * BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hold a hollow copy of every model under its id; removed at the end, as copying one would fill its holes."""
    root = tmp_path_factory.mktemp("hub")
    for name, (tensors, dtype, model_type) in MODELS.items():
        write_hollow(root / name, tensors, dtype, model_type)
    yield root
    shutil.rmtree(root)


def plan(hub: Path, file: Path, overrides: tuple[str, ...] = ()) -> Planned:
    """Plan a recipe with the hub's names replaced by folders."""
    here = re.compile("|".join(map(re.escape, sorted(MODELS, key=len, reverse=True))))
    local = hub / file.name
    local.write_text(here.sub(lambda found: str(hub / found[0]), file.read_text()))
    changes = tuple(here.sub(lambda found: str(hub / found[0]), change) for change in overrides)
    return api.plan(local, overrides=changes)


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """List the (recipe, --set values) of every plan and merge that the recipes and their page show."""
    found = []
    text = "\n".join([PAGE, *(file.read_text() for file in FILES)])
    for line in re.findall(r"\$ deltasmith ((?:plan|merge) lab/paper/.*)", text):
        words = shlex.split(line, comments=True)
        changes = tuple(after for word, after in pairwise(words) if word == "--set")
        found.append((Path(words[1]).name, changes))
    return sorted(set(found))


def ids(file: Path) -> set[str]:
    mapping = yaml.safe_load(file.read_text())
    return {mapping["base"], *(model["model"] for model in mapping["models"])}


def test_there_are_recipes_and_every_id_has_known_shapes() -> None:
    assert len(FILES) == 9
    assert set().union(*map(ids, FILES)) <= set(MODELS)


def test_the_shapes_are_those_of_the_models() -> None:
    counts = {name: sum(math.prod(s) for s in tensors.values()) for name, (tensors, _, _) in MODELS.items()}
    assert counts["meta-llama/Llama-2-13b-hf"] == 13_015_864_320
    assert counts["meta-llama/Llama-2-7b-hf"] == 6_738_415_616
    assert counts["openai/clip-vit-base-patch32"] == 151_277_313 + 50 + 77
    assert counts["tanganke/clip-vit-base-patch32_dtd"] == 87_456_000
    assert len(LLAMA_7B) == 291


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_tensor_is_dropped(file: Path, hub: Path) -> None:
    planned = plan(hub, file).built.plan
    wanted = yaml.safe_load(file.read_text())
    base, *experts = [MODELS[wanted["base"]][0], *(MODELS[m["model"]][0] for m in wanted["models"])]
    assert {row.name for row in planned.rows} == set(base)
    merged = {row.name for row in planned.rows if row.action == "merge"}
    assert all(all(row.present) for row in planned.rows if row.action == "merge")
    if "clip" in file.name:
        assert merged == set(vision())
    else:
        assert merged == set(base) - {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(set(expert) - merged <= set(base) for expert in experts)
    copied = {row.name for row in planned.rows if row.action == "copy"}
    assert merged | copied == set(base)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_stated_bytes_are_the_planned_ones(file: Path, hub: Path) -> None:
    planned = plan(hub, file)
    (stated,) = re.findall(
        r"# Reads ([\d.]+) GB, writes ([\d.]+) GB[^,]*, disk ([\d.]+) GB", file.read_text()
    )
    real = (planned.bytes_read, planned.bytes_written, planned.bytes_read + planned.bytes_written)
    assert stated == tuple(f"{size / 1e9:.1f}" for size in real)
    assert planned.memory == 512 << 20
    assert "RAM 0.5 GiB" in file.read_text()
    assert f"| `{file.stem}` | {stated[0]} | {stated[1]} |" in PAGE
    if evaluation := re.search(r", ([\d.]+) GB \(on the GPU or not\) to evaluate", file.read_text()):
        assert evaluation[1] == stated[1]


@pytest.mark.parametrize(
    ("name", "changes"), commands(), ids=lambda v: " ".join(v) if isinstance(v, tuple) else v
)
def test_every_command_that_is_shown_plans(name: str, changes: tuple[str, ...], hub: Path) -> None:
    planned = plan(hub, PAPER / name, changes)
    assert [row for row in planned.built.plan.rows if row.action == "merge"]


def test_the_other_commands_of_the_page_have_these_options() -> None:
    found = re.findall(r"\$ deltasmith ((?:evaluate|compare) .*)", PAGE)
    assert len(found) == 3
    for line in found:
        name, *arguments = shlex.split(line)
        command = group.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        command.make_context(name, arguments)


def test_the_whole_model_is_refused_because_the_vocabularies_differ(hub: Path) -> None:
    with pytest.raises(RefusedError, match=r"\[32000, 5120\] in base and \[32001, 5120\] in math.*vocabular"):
        plan(hub, PAPER / "wizard-13b-della.yaml", ('where="*"',))


def test_the_whole_model_is_merged_where_the_vocabularies_agree(hub: Path) -> None:
    changes = ("models.0.model=layoric/llama-2-13b-code-alpaca", 'where="*.weight"')
    assert 'where="*.weight"' in PAGE
    planned = plan(hub, PAPER / "wizard-13b-expert.yaml", changes).built.plan
    assert {row.action for row in planned.rows} == {"merge"}


def test_the_warning_about_vision_towers_is_the_one_the_page_promises(hub: Path) -> None:
    warnings = plan(hub, PAPER / "clip-b32-ta.yaml").built.plan.warnings
    assert "sun397 is a clip_vision_model model and base a clip model" in warnings
    assert all("clip_vision_model" in warning for warning in warnings)


def test_the_page_names_every_recipe() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)) == {file.stem for file in FILES}


@cache
def lines(file: str) -> list[list[str]]:
    """Split the comment lines of a recipe into words."""
    text = (PAPER / f"{file}.yaml").read_text()
    return [
        line.removeprefix("#").partition("(sic")[0].split()
        for line in text.splitlines()
        if line.startswith("#")
    ]


def cells(table: Published, row: Row) -> list[str]:
    """Print a row as the recipes do, with the table's number of decimals."""
    places = 2 if table is EMR_LOGS else 1
    return ["-" if value is None else f"{value:.{places}f}" for value in row.values]


EXPECTED = [
    *[
        (f"wizard-13b-{method.lower()}", table, row, row.models)
        for table in (DELLA_ELECT, DELLA_NO_ELECT)
        for method in ("TA", "DARE", "TIES", "DELLA")
        for row in table.rows
        if row.method == method
    ],
    *[("wizard-13b-expert", DELLA_PRUNED, row, row.method) for row in DELLA_PRUNED.rows],
    *[
        (file, FUSION_BENCH_CLIP, FUSION_BENCH_CLIP.row("CLIP ViT-B/32", method), method)
        for file, method in (
            ("clip-b32-ta", "pre trained"),
            ("clip-b32-ta", "fine tuned"),
            ("clip-b32-ta", "average"),
            ("clip-b32-ta", "TA"),
            ("clip-b32-ties", "TIES"),
        )
    ],
    *[
        (file, EMR_AVERAGES, EMR_AVERAGES.row("CLIP ViT-B/32", method), method)
        for file, method in (
            ("clip-b32-ta", "average"),
            ("clip-b32-ta", "TA"),
            ("clip-b32-ties", "TIES"),
            ("clip-b32-emr", "individual"),
            ("clip-b32-emr", "average"),
            ("clip-b32-emr", "TA"),
            ("clip-b32-emr", "TIES"),
        )
    ],
    *[("clip-b32-emr", EMR_ABLATION, row, row.method) for row in EMR_ABLATION.rows[:4]],
    ("clip-b32-emr", EMR_TASKS, EMR_TASKS.rows[0], "EMR"),
    ("clip-b32-emr", EMR_LOGS, EMR_LOGS.rows[0], "EMR"),
    ("clip-b32-ties", TIES_AVERAGES, TIES_AVERAGES.rows[0], "no validation"),
]


@pytest.mark.parametrize(
    ("file", "table", "row", "name"), EXPECTED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_the_expected_numbers_are_the_published_ones(
    file: str, table: Published, row: Row, name: str
) -> None:
    assert [*name.split(), *cells(table, row)] in lines(file)


def test_a_recipe_states_no_number_that_was_not_published() -> None:
    wanted = {(file, *name.split(), *cells(table, row)) for file, table, row, name in EXPECTED}
    for file in FILES:
        after = False
        for words in lines(file.stem):
            after = after or words[:1] == ["Expected"]
            numbers = [w for w in words if re.fullmatch(r"-|\d+\.\d+", w)]
            if after and numbers and words[-len(numbers) :] == numbers:
                assert (file.stem, *words) in wanted


@pytest.mark.parametrize("preset", [{"preset": "della", "density": 0.7, "window": 0.14}, {"merge": "elect"}])
def test_weight_zero_is_the_same_as_leaving_the_model_out(preset: dict[str, object], tmp_path: Path) -> None:
    models = family(tmp_path)
    with_all = models.recipe("all.yaml", **preset)
    pair = models.recipe(
        "pair.yaml", **preset, models=[{"model": f"./{m}", "label": m} for m in ("m0", "m2")]
    )
    assert run("merge", with_all, tmp_path / "a", "--set", "models.m1.weight=0", "--quiet").code == 0
    assert run("merge", pair, tmp_path / "b", "--quiet").code == 0
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
