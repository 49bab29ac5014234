from __future__ import annotations

import pytest
from recipe_cases import EXAMPLES, TWO

from deltasmith.edits.amplify_partitions import AmplifyPartitions
from deltasmith.edits.drop import Drop, DropMatchL1
from deltasmith.edits.drop_by_rank import DropByRank, DropByRankInclusive, DropByRankMatchL1
from deltasmith.edits.drop_partly import DropPartly
from deltasmith.edits.keep_largest import KeepAtLeast, KeepLargest, KeepLargestInTensor
from deltasmith.edits.keep_middle import KeepMiddleOfRow, KeepMiddleOfTensor
from deltasmith.edits.quantise import Quantise
from deltasmith.errors import RecipeError
from deltasmith.merges.elect import Elect, ElectSum
from deltasmith.merges.emr import Emr
from deltasmith.merges.linear import Linear
from deltasmith.merges.sum import Sum
from deltasmith.merges.unify import Unify
from deltasmith.operation.schedule import Curve
from deltasmith.recipe.catalogue import DIALECTS, choice
from deltasmith.recipe.checks import from_dict, loads
from deltasmith.recipe.expansion import expand
from deltasmith.recipe.explain import explain
from deltasmith.recipe.model import to_mapping
from deltasmith.recipe.presets import COMMON, PRESETS, fields_of
from deltasmith.recipe.problems import RecipeProblems
from deltasmith.recipe.tree import plain
from deltasmith.recipe.yaml_file import parse


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_expanding_gives_the_very_same_recipe(name, dialect):
    offered = [d for d, _ in explain(name).dialects]
    mapping = plain(parse(f"{TWO}preset: {name}\ndialect: {dialect}\n{EXAMPLES.get(name, '')}\n", "r"))
    if dialect not in offered:
        with pytest.raises(RecipeProblems, match="has no dialect"):
            from_dict(mapping)
        return
    expanded = expand(mapping)
    assert "preset" not in expanded
    recipe = from_dict(mapping)
    assert recipe == from_dict(expanded)
    assert recipe == from_dict(to_mapping(recipe))
    assert expand(expanded) == expanded


@pytest.mark.parametrize(
    ("text", "edits", "merge"),
    [
        ("preset: ties", (KeepLargest(density=0.2),), Elect(zero="majority")),
        ("preset: ties\ndensity: 0.5\nzero: none", (KeepLargest(density=0.5),), Elect(zero="none")),
        ("preset: ties\ndialect: authors", (KeepAtLeast(density=0.2),), Elect(zero="majority")),
        ("preset: ties\ndialect: mergekit", (KeepLargestInTensor(density=1.0),), Elect(zero="positive")),
        ("preset: dare\ndensity: 0.5", (Drop(density=0.5),), Sum()),
        ("preset: dare\ndensity: 0.5\ndialect: mergekit", (DropMatchL1(density=0.5),), Sum()),
        ("preset: k_dare\ndensity: 0.5\nk: -0.5", (DropPartly(density=0.5, k=-0.5),), Sum()),
        ("preset: bitdelta", (Quantise(codec="bitdelta"),), Sum()),
        ("preset: bitdelta\ncodec: bitdelta:magnitude=2", (Quantise(codec="bitdelta:magnitude=2"),), Sum()),
        ("preset: dare_ties\ndensity: 0.5", (Drop(density=0.5),), Elect(zero="majority")),
        (
            "preset: dare_ties\ndensity: 0.5\ndialect: mergekit",
            (DropMatchL1(density=0.5),),
            ElectSum(zero="positive"),
        ),
        ("preset: della\ndensity: 0.7", (DropByRank(density=0.7, window=0.14),), Elect(zero="none")),
        (
            "preset: della\ndensity: 0.7\nwindow: 0\ndialect: authors",
            (DropByRankInclusive(density=0.7, window=0.0),),
            Elect(zero="positive"),
        ),
        (
            "preset: della\ndensity: 0.7\nepsilon: 0.1\ndialect: mergekit",
            (DropByRankMatchL1(density=0.7, epsilon=0.1),),
            Elect(zero="positive"),
        ),
        ("preset: magprune\ndensity: 0.7", (DropByRank(density=0.7, window=0.14),), Sum()),
        ("preset: magnitude\ndensity: 0.1", (KeepLargest(density=0.1),), Sum()),
        ("preset: breadcrumbs\ndensity: 0.15", (KeepMiddleOfRow(density=0.15, gamma=0.006),), Sum()),
        (
            "preset: breadcrumbs_ties\ndensity: 0.15\ndialect: mergekit",
            (KeepMiddleOfTensor(density=0.15, gamma=0.01),),
            ElectSum(zero="positive"),
        ),
        ("preset: dppa\nfactors: [2, 1]", (AmplifyPartitions(factors=(2.0, 1.0)),), Sum()),
        ("preset: emr", (), Unify()),
        ("preset: emr\ntask: math\nrescaler: l2", (), Emr(task="math", rescaler="l2")),
        ("preset: emr\ntask: math\ndialect: authors", (), Emr(task="math", rescaler="l1_tensor_mean")),
        ("preset: average", (), Linear()),
        ("preset: task_arithmetic", (), Sum()),
    ],
)
def test_what_presets_stand_for(text, edits, merge):
    recipe = loads(TWO + text)
    assert recipe.merge == merge
    for entry in recipe.models:
        assert tuple(edit.record for edit in entry.edits) == edits
        assert all(edit.where == "*" for edit in entry.edits)


def test_fields_may_be_given_per_label_or_as_schedules():
    recipe = loads(TWO + "preset: dare\ndensity: {code: 0.7, math: {layers: [0.1, 0.5]}}\n")
    math, code = (entry.edits[0].record for entry in recipe.models)
    assert math == Drop(density=Curve(layers=(0.1, 0.5)))
    assert code == Drop(density=0.7)
    both = loads(TWO + "preset: dare\ndensity: {layers: [0.1, 0.5]}\n")
    assert [entry.edits[0].record for entry in both.models] == [math, math]


def test_default_labels_may_be_used():
    recipe = loads("base: b\nmodels: [{model: x}, {model: y}]\npreset: dare\ndensity: {m0: 0.5, m1: 0.6}\n")
    assert [entry.edits[0].record for entry in recipe.models] == [Drop(density=0.5), Drop(density=0.6)]


def test_expo_is_a_scale():
    recipe = loads("base: sft\nmodels: [{model: dpo}]\npreset: expo\nalpha: 0.5\n")
    assert (recipe.merge, recipe.scale) == (Sum(), 1.5)
    assert loads("base: sft\nmodels: [{model: dpo}]\npreset: expo\n").scale == 1.3
    curve = loads("base: sft\nmodels: [{model: dpo}]\npreset: expo\nalpha: {layers: [0, 1]}\n")
    assert curve.scale == Curve(layers=(1.0, 2.0))


def test_fedavg_weighs_by_examples():
    recipe = loads(
        "models: [{model: x, label: a}, {model: y, label: b}]\npreset: fedavg\nexamples: {a: 1, b: 3}\n"
    )
    assert [entry.weight for entry in recipe.models] == [1.0, 3.0]
    assert recipe.space == "weight"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preset: dare", ['r.yaml:3:9: drop needs "density"; a number above 0 and at most 1']),
        ("preset: dare\ndensity: 2", ["r.yaml:4:10: density must be above 0 and at most 1, not 2"]),
        (
            "preset: dare\ndensity: {math: 2, code: 0.5}",
            ["r.yaml:4:17: density must be above 0 and at most 1, not 2"],
        ),
        (
            "preset: dare\ndensity: {math: 0.5}",
            ['r.yaml:4:10: density has no value for the model "code"; add code: number'],
        ),
        (
            "preset: dare\ndensity: {math: 0.5, cod: 0.5}",
            ['r.yaml:4:22: density: no model has the label "cod"; did you mean "code"?'],
        ),
        (
            "preset: dare\ndensty: 2",
            [
                'r.yaml:4:1: unknown key "densty"; did you mean "density"?',
                "r.yaml:4:9: density must be above 0 and at most 1, not 2",
            ],
        ),
        ("preset: dare\ndensity: 1\nwindow: 1", ['r.yaml:5:1: unknown key "window"; dare takes: density']),
        (
            "preset: dare\ndensity: 1\nmerge: sum",
            [
                "r.yaml:5:1: merge cannot stand beside preset: dare; "
                "start from what `deltasmith explain dare` shows"
            ],
        ),
        ("preset: [dare]", ["r.yaml:3:9: preset must be a name; see `deltasmith methods`"]),
        (
            "preset: tsv\ndialect: mergekit",
            ['r.yaml:3:9: tsv has no dialect "mergekit"; write `{tsv: {dialect: paper or authors}}`'],
        ),
        ("preset: expo\nalpha: x", ['r.yaml:4:8: alpha must be a number or a schedule, not "x"']),
        (
            "preset: expo\nscale: 2",
            ["r.yaml:4:1: expo sets scale to 1 + alpha; remove scale, or leave the preset out"],
        ),
        (
            "preset: fedavg",
            ['r.yaml:3:9: fedavg needs "examples"; write examples: {label: number of training examples}'],
        ),
        (
            "preset: fedavg\nexamples: {math: 0, code: 2}",
            ["r.yaml:4:18: examples must be a number above 0, not 0"],
        ),
    ],
)
def test_problems_stand_where_the_recipe_wrote_them(text, expected):
    with pytest.raises(RecipeError) as caught:
        loads(TWO + text, name="r.yaml")
    assert isinstance(caught.value, RecipeProblems)
    assert [str(problem) for problem in caught.value.problems] == expected
    assert caught.value.exit_code == 2


def test_edits_beside_a_preset_are_refused():
    with pytest.raises(RecipeProblems, match=r"r:2:21: a preset brings its own edits"):
        loads(
            "base: b\nmodels: [{model: x, edits: [{amplify: {factor: 2}}]}]\npreset: dare\ndensity: 1",
            name="r",
        )


def test_expand_reports_a_mapping_by_path():
    with pytest.raises(RecipeProblems, match=r'recipe: preset: unknown preset "dar"; did you mean "dare"\?'):
        expand({"preset": "dar"})
    assert expand({"merge": "sum"}) == {"merge": "sum"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_no_field_hides_another(name):
    preset = PRESETS[name]
    for dialect in DIALECTS:
        shape = preset.in_dialect(dialect)
        uses = [("edit", use.name) for use in shape.edits] + [("merge", shape.merge.name)]
        records = [(choice(k, n, dialect) or choice(k, n, "paper")).load() for k, n in uses]
        fields = [field for record in records for field in record.model_fields]
        extra = [preset.extra.name] if preset.extra else []
        assert len(fields) == len(set(fields))
        assert not set(fields) & {*COMMON, "merge", "preset", "edits", *extra}
        assert set(fields) == set(fields_of(preset, dialect))
        for use, record in zip([*shape.edits, shape.merge], records, strict=True):
            assert set(use.defaults) <= set(record.model_fields)
