"""Trainers' deltas wherever a model goes: what they give is what the models they stand for give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import deltasmith
from containers import words
from deltasmith.api import compute, diff, merge
from deltasmith.engine.progress import Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, RefusedError
from deltasmith.formats.opening import open_model
from deltasmith.formats.trainer_delta import open_trainer_delta
from deltasmith.packing import pack, unpack
from deltasmith.packing.command import pack_models
from deltasmith.packing.trained import pack_trained
from models import Family, draw, family, read_model, run, tree, write_adapter, write_model, write_recipe

ENCODINGS = ("xor", "overwrite")
SHARD = "model-00000-of-00001.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    """A base, two fine-tunes, `m0` as `xor` and `overwrite`; the sum of its difference and the base is not exact."""
    made = family(tmp_path_factory.mktemp("trained") / "models", experts=2)
    name = next(n for n in made.tunes[0] if n.endswith("q_proj.weight"))
    made.base[name][0, :2], made.tunes[0][name][0, :2] = (3.0, -0.0), (2e-9, 0.0)
    write_model(made.root / "base", made.base)
    write_model(made.root / "m0", made.tunes[0])
    for encoding in ENCODINGS:
        done = run("pack", made.root / "base", made.root / "m0", made.root / encoding, "--trainer", encoding)
        assert done.code == 0, done.err
    return made


def recipe(root: Path, model: str, **fields: object) -> Path:
    entries = [{"model": f"./{model}", "label": "tuned"}]
    return write_recipe(
        root / f"{model}.yaml", {"base": "./base", "models": entries, "merge": "sum"} | fields
    )


# Opening.


def test_it_opens_as_a_delta_without_a_base(models):
    opened = open_model(str(models.root / "xor"))
    assert (opened.checkpoint, opened.packed, opened.adapter, opened.config) == (None, None, None, None)
    assert opened.trainer is not None
    assert (opened.name, opened.kind) == ("xor", "a trainer's delta")
    assert [file.name for file in opened.files] == [SHARD]
    opened.check_unchanged()
    for other, kind in (("base", "a model"), ("m0", "a model")):
        assert open_model(str(models.root / other)).kind == kind


def test_a_changed_shard_is_noticed(models, tmp_path):
    folder = shutil.copytree(models.root / "xor", tmp_path / "xor")
    opened = open_model(str(folder))
    with (folder / SHARD).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedInputError, match="changed while it was read"):
        opened.check_unchanged()


def test_where_no_base_is_named_it_is_refused_with_what_to_do(models, tmp_path):
    path = models.root / "xor"
    for command, refused, fix in (
        (
            ("evaluate", path, "--tasks", "family"),
            "a trainer's delta is not a model by itself",
            "a recipe that",
        ),
        (
            ("convert", path, tmp_path / "o"),
            "a trainer's delta is not a model by itself",
            "unpack it, with --base",
        ),
        (("unpack", path, tmp_path / "o"), "does not say which model it changes", "with --base"),
        (
            ("diff", path, models.root / "m0"),
            "a trainer's delta is not a model by itself in base",
            "name a whole",
        ),
        (
            ("pack", path, models.root / "m0", tmp_path / "o"),
            "a trainer's delta cannot be the base",
            "unpack it",
        ),
        (
            ("unpack", path, tmp_path / "o", "--base", path),
            "a trainer's delta cannot be the base",
            "unpack it",
        ),
    ):
        done = run(*command)
        assert (done.code, len(done.errors)) == (1, 1), done
        assert refused in done.err
        assert fix in done.err
    alone = write_recipe(
        models.root / "alone.yaml",
        {"models": [{"model": "./xor", "label": "a"}, {"model": "./m0", "label": "b"}], "merge": "karcher"},
    )
    done = run("plan", alone)
    assert done.code == 1
    assert "a trainer's delta is not a model by itself in a; name the model it changes as" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_two_kinds_is_refused(models, tmp_path):
    folder = shutil.copytree(models.root / "xor", tmp_path / "both")
    write_adapter(folder, models.base, 1)
    with pytest.raises(RefusedError, match="a model and an adapter"):
        open_model(str(folder))


# In recipes.


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_recipe_reads_it_as_the_model_it_stands_for(models, tmp_path, encoding):
    edits = {"edits": [{"keep_largest": {"density": 0.5}}]}
    both = []
    for model in (encoding, "m0"):
        entries = [{"model": f"./{model}", "label": "tuned", **edits}, {"model": "./m1", "label": "other"}]
        path = recipe(models.root, model, models=entries, merge="elect")
        merge(path, tmp_path / model)
        both.append(words(tmp_path / model))
    assert both[0] == both[1]
    manifest = json.loads((tmp_path / encoding / "manifest.json").read_text())
    assert [(i["label"], i["source"]) for i in manifest["inputs"]][:2] == [
        ("base", "base"),
        ("tuned", encoding),
    ]
    assert list(manifest["inputs"][1]["files"]) == [SHARD]


def test_diff(models):
    got, expected = (diff(models.root / "base", [models.root / m]).as_json() for m in ("xor", "m0"))
    assert json.dumps(got).replace('"xor"', '"m0"') == json.dumps(expected)
    assert run("diff", models.root / "base", models.root / "overwrite").code == 0


def test_compute(models):
    mine, full = (dict(compute(recipe(models.root, model)).tensors) for model in ("overwrite", "m0"))
    assert mine.keys() == full.keys()
    assert all(np.array_equal(mine[name], full[name]) for name in full)


def test_evaluate_through_a_recipe(tmp_path):
    home = Path(deltasmith.__file__).parent / "family"
    assert run("pack", home / "base", home / "small" / "math", tmp_path / "d", "--trainer", "xor").code == 0
    scores = []
    for model in (tmp_path / "d", home / "small" / "math"):
        entries = [{"model": str(model), "label": "math"}]
        path = write_recipe(
            tmp_path / "r.yaml", {"base": str(home / "base"), "models": entries, "merge": "sum"}
        )
        done = run("evaluate", path, "--tasks", "family", "--limit", 2, "--runtime", "numpy", "--json")
        assert done.code == 0, done.err
        scores.append([task["items"] for task in done.document["tasks"].values()])
    assert scores[0] == scores[1]


# Packing and unpacking.


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("threads", [1, 3])
def test_unpacking_gives_the_model_to_the_bit(models, tmp_path, encoding, threads):
    result = unpack(models.root / encoding, tmp_path / "out", base=models.root / "base", threads=threads)
    assert words(tmp_path / "out") == words(models.root / "m0")
    assert result.tensors == len(models.base)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (models.root / "base" / name).read_bytes()
    assert run("verify", tmp_path / "out").code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [(i["label"], i["source"]) for i in manifest["inputs"]] == [("base", "base"), ("delta", encoding)]
    assert manifest["recipe"] == {"unpack": encoding}


def test_packing_it_packs_the_model_it_stands_for(models, tmp_path):
    for codec in ("lossless", "bitdelta"):
        for model in ("xor", "m0"):
            options = {"codec": codec, "where": "*" if codec == "lossless" else "linears", "label": "x"}
            pack(models.root / "base", models.root / model, tmp_path / f"{codec}-{model}", **options)
        mine, full = (tmp_path / f"{codec}-{m}" / "delta.safetensors" for m in ("xor", "m0"))
        ours, theirs = read_model(mine.parent), read_model(full.parent)
        ours.pop("deltasmith.document"), theirs.pop("deltasmith.document")
        assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}
    unpack(tmp_path / "lossless-xor", tmp_path / "out", base=models.root / "base")
    assert words(tmp_path / "out") == words(models.root / "m0")
    assert (tmp_path / "lossless-xor" / "tokenizer.json").exists()


def test_another_base_is_refused_and_leaves_nothing(models, tmp_path):
    other = {name: array + np.float32(0.25) for name, array in models.base.items()}
    write_model(tmp_path / "other", other)
    before = tree(tmp_path)
    done = run("unpack", models.root / "xor", tmp_path / "out", "--base", tmp_path / "other")
    assert (done.code, len(done.errors)) == (3, 1)
    assert "its checksum differs" in done.err
    write_model(tmp_path / "fewer", {n: a for n, a in models.base.items() if not n.endswith("q_proj.weight")})
    done = run("unpack", models.root / "xor", tmp_path / "out", "--base", tmp_path / "fewer")
    assert done.code == 3
    assert "not in the base" in done.err
    shutil.rmtree(tmp_path / "fewer")
    assert tree(tmp_path) == before


def test_resuming_over_another_base_begins_anew(models, tmp_path):
    """What of a tensor the delta does not touch came from the first base must not stay."""

    class Interrupter(Silent):
        def __init__(self, stop):
            self.stop, self.done = stop, 0

        def advance(self, nbytes):
            self.done += nbytes
            if self.done > 9000:
                self.stop.ask()

    first, second = (shutil.copytree(models.root / "base", tmp_path / n / "base") for n in ("a", "b"))
    untouched = dict(models.base) | {
        "model.embed_tokens.weight": models.base["model.embed_tokens.weight"] * 2
    }
    write_model(second, untouched)
    write_model(
        tmp_path / "m", dict(models.base) | {"model.norm.weight": models.base["model.norm.weight"] + 1}
    )
    pack_trained(first, tmp_path / "m", tmp_path / "d")
    stop = Stop()
    with pytest.raises(InterruptedRunError):
        unpack(
            tmp_path / "d",
            tmp_path / "out",
            base=first,
            threads=1,
            stop=stop,
            progress=Interrupter(stop),
        )
    unpack(tmp_path / "d", tmp_path / "out", base=second)
    name = "model.embed_tokens.weight"
    assert words(tmp_path / "out")[name] == words(second)[name] != words(first)[name]


# Writing.


def test_the_version_is_that_of_the_folders_name(models, tmp_path):
    pack_trained(models.root / "base", models.root / "m0", tmp_path / "weight_v000012")
    opened = open_trainer_delta(tmp_path / "weight_v000012")
    assert (opened.version, opened.base_version) == ("000012", "000011")
    for name in ("weight_v000000", "delta"):
        pack_trained(models.root / "base", models.root / "m0", tmp_path / name)
        opened = open_trainer_delta(tmp_path / name)
        assert (opened.version, opened.base_version) == ("000001", "000000")


def test_what_can_be_packed_can_be_written(models, tmp_path):
    """A recipe, an adapter, a packed delta and another trainer's delta; the bytes are those of the model itself."""
    expected = (models.root / "xor" / SHARD).read_bytes()
    base = models.root / "base"
    pack_models(str(base), [str(models.root / "overwrite")], str(tmp_path / "again"), trainer="xor")
    assert (tmp_path / "again" / SHARD).read_bytes() == expected
    write_adapter(tmp_path / "lora", models.base, 3)
    path = write_recipe(
        tmp_path / "lora.yaml",
        {"base": str(base), "models": [{"model": "./lora", "label": "lora"}], "merge": "sum"},
    )
    merge(path, tmp_path / "merged")
    for model in ("lora", "lora.yaml"):
        pack_trained(base, tmp_path / model, tmp_path / f"d-{model}", encoding="overwrite")
        unpack(tmp_path / f"d-{model}", tmp_path / f"u-{model}", base=base)
        assert words(tmp_path / f"u-{model}") == words(tmp_path / "merged")


def test_the_result_and_what_is_printed(models, tmp_path):
    base, tuned = models.root / "base", models.root / "m0"
    done = run("pack", base, tuned, tmp_path / "d", "--trainer", "overwrite")
    assert "bytes changed" in done.err
    assert f"next: deltasmith unpack {tmp_path / 'd'}" in done.out
    done = run("pack", base, tuned, tmp_path / "d", "--trainer", "xor", "--overwrite", "--json")
    assert open_trainer_delta(tmp_path / "d").encoding == "xor"
    assert done.document["tensors"] == len(models.base)
    assert done.document["nbytes"] == sum(p.stat().st_size for p in (tmp_path / "d").iterdir())
    assert done.document["relative_error"] == 0
    assert (tmp_path / "d" / SHARD).read_bytes() == (models.root / "xor" / SHARD).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--codec", "bitdelta"),
        ("--rule", "*=sparse"),
        ("--budget", "0.1"),
        ("--candidate", "sparse"),
        ("--where", "*"),
        ("--rest", "dense"),
        ("--statistics", "x"),
    ],
)
def test_codecs_cannot_be_chosen_beside_it(models, tmp_path, options):
    done = run("pack", models.root / "base", models.root / "m0", tmp_path / "d", "--trainer", "xor", *options)
    assert (done.code, len(done.errors)) == (2, 1)
    assert f"and {options[0]} would choose codecs" in done.err
    assert list(tmp_path.iterdir()) == []


def test_one_model_at_a_time_and_into_its_own_place(models, tmp_path):
    base, tuned = str(models.root / "base"), str(models.root / "m0")
    with pytest.raises(RecipeError, match="2 models were given"):
        pack_models(base, [tuned, tuned], str(tmp_path / "d"), trainer="xor")
    before = tree(models.root)
    for place in (models.root / "base", models.root / "m0"):
        with pytest.raises(RefusedError):
            pack_trained(base, tuned, place, overwrite=True)
    with pytest.raises(RefusedError, match="not the same kind of tensor"):
        pack_trained(base, write_model(tmp_path / "wider", draw(1, hidden=20)), tmp_path / "d")
    assert tree(models.root) == before
    assert [p.name for p in tmp_path.iterdir()] == ["wider"]


def test_an_interrupted_run_leaves_nothing(models, tmp_path):
    class Interrupter(Silent):
        def advance(self, nbytes):
            stop.ask()

    stop = Stop()
    with pytest.raises(InterruptedRunError):
        pack_trained(
            models.root / "base", models.root / "m0", tmp_path / "d", stop=stop, progress=Interrupter()
        )
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_change_while_it_is_written(models, tmp_path):
    model = shutil.copytree(models.root / "m0", tmp_path / "m0")

    class Meddler(Silent):
        def advance(self, nbytes):
            with (model / "model.safetensors").open("ab") as file:
                file.write(b"x")

    with pytest.raises(DamagedInputError, match="changed while it was read"):
        pack_trained(models.root / "base", model, tmp_path / "d", progress=Meddler())
    assert [p.name for p in tmp_path.iterdir()] == ["m0"]


def test_tensors_longer_than_a_piece(tmp_path):
    """Pieces end between the bytes of words; places count from the tensor's beginning."""
    random = np.random.default_rng(5)
    base = {"model.layers.0.w": random.standard_normal((700, 901)).astype(np.float32)}
    tuned = {"model.layers.0.w": base["model.layers.0.w"].copy()}
    tuned["model.layers.0.w"].reshape(-1)[:: 1 << 13] += 1
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "m", tuned)
    for encoding in ENCODINGS:
        pack_trained(tmp_path / "base", tmp_path / "m", tmp_path / encoding, encoding=encoding)
        unpack(tmp_path / encoding, tmp_path / f"u-{encoding}", base=tmp_path / "base")
        assert words(tmp_path / f"u-{encoding}") == words(tmp_path / "m")
    assert ml_dtypes.bfloat16 == read_model(tmp_path / "m")["model.layers.0.w"].dtype
