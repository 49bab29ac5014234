"""Recipes that several tests need: one per fault with its message, and the fields each preset requires."""

from __future__ import annotations

ONE = "base: ./base\nmodels: [{model: ./math}]\n"
TWO = "base: ./base\nmodels: [{model: ./math, label: math}, {model: ./code, label: code}]\n"

FAULTS = [
    # Fault 1: a misspelt method.
    (ONE + "merge: elekt", 'r.yaml:3:8: unknown merge "elekt"; did you mean "elect"?'),
    ("preset: tiess\n" + ONE, 'r.yaml:1:9: unknown preset "tiess"; did you mean "ties"?'),
    (ONE + "merge: drop", 'r.yaml:3:8: unknown merge "drop"; it is an edit'),
    # Fault 2: a misspelt parameter.
    (
        "base: b\nmodels:\n- model: m\n  edits:\n  - drop: {densitty: 0.5}\n",
        'r.yaml:5:12: unknown key "densitty"; did you mean "density"?',
    ),
    ("preset: dare\ndensty: 0.5\n" + ONE, 'r.yaml:2:1: unknown key "densty"; did you mean "density"?'),
    (
        "base: b\nmodels: [{model: m, edits: [{drop: {rate: 0.9}}]}]",
        'r.yaml:2:37: unknown key "rate"; density is the fraction kept: write density: 0.1',
    ),
    (ONE + "merge: {sum: {x: 1}}", 'r.yaml:3:15: unknown key "x"; sum has no fields'),
    # Fault 3: an unknown top-level key.
    (ONE + "scales: 1", 'r.yaml:3:1: unknown key "scales"; did you mean "scale"?'),
    (ONE + "merge_method: ties", 'r.yaml:3:1: unknown key "merge_method"; write merge: or preset:'),
    ("base: b\nmodels: [{modl: m}]", 'r.yaml:2:11: unknown key "modl"; did you mean "model"?'),
    # Fault 4: a repeated key.
    (ONE + "base: c", 'r.yaml:3:1: the key "base" occurs twice (first in line 1); remove one of them'),
    # Fault 5: weights that are no numbers.
    (
        "base: b\nmodels: [{model: m, weight: .nan}]",
        "r.yaml:2:29: weight must be a finite number, not .nan",
    ),
    (
        "base: b\nmodels: [{model: m, weight: -.inf}]",
        "r.yaml:2:29: weight must be a finite number, not -.inf",
    ),
    (
        "base: b\nmodels: [{model: m, weight: 1e400}]",
        "r.yaml:2:29: weight must be a finite number, not 1e400",
    ),
    ("base: b\nmodels: [{model: m, weight: '1'}]", 'r.yaml:2:29: weight must be a number, not "1"'),
    ("base: b\nmodels: [{model: m, weight: true}]", "r.yaml:2:29: weight must be a number, not true"),
    (ONE + "scale: .inf", "r.yaml:3:8: scale must be a finite number, not .inf"),
    # Fault 6: values out of range.
    (
        "base: b\nmodels: [{model: m, edits: [{drop: {density: 1.5}}]}]",
        "r.yaml:2:46: density must be above 0 and at most 1, not 1.5",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop: {density: 0}}]}]",
        "r.yaml:2:46: density must be above 0 and at most 1, not 0; use weight: 0 to leave the model out",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{low_rank: {rank: -3}}]}]",
        "r.yaml:2:47: rank must be at least 1, not -3",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{low_rank: {rank: 1.5}}]}]",
        "r.yaml:2:47: rank must be a whole number at least 1, not 1.5",
    ),
    (
        "models: [{model: a}, {model: b}]\nmerge: {slerp: {t: 1.5}}",
        "r.yaml:2:20: t must be at least 0 and at most 1, not 1.5",
    ),
    (
        ONE + "merge: {elect: {zero: nil}}",
        'r.yaml:3:23: zero must be majority, positive or none, not "nil"',
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop_by_rank: {density: 0.9, window: 0.5}}]}]",
        "r.yaml:2:30: drop_by_rank: keep probabilities would range from 0.65 to 1.15 "
        "(density 0.9 with half a width of 0.25); they must lie in (0, 1]",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [low_rank]}]",
        "r.yaml:2:29: low_rank: give either density or rank",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [drop]}]",
        'r.yaml:2:29: drop needs "density"; a number above 0 and at most 1',
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop_partly: {density: 0.5}}]}]",
        'r.yaml:2:30: drop_partly needs "k"',
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop_partly: {density: 0.5, k: .inf}}]}]",
        "r.yaml:2:61: k must be a finite number, not .inf",
    ),
    # Codecs in an edit.
    (
        "base: b\nmodels: [{model: m, edits: [{quantise: {codec: bitdelt}}]}]",
        "r.yaml:2:48: codec: no codec is called 'bitdelt'; did you mean bitdelta?",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{quantise: {codec: {bitdelta: {sclae: row}}}}]}]",
        "r.yaml:2:48: codec: codec bitdelta has no field 'sclae'; did you mean scale?",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{quantise: {codec: lossless}}]}]",
        "r.yaml:2:48: codec: lossless stores every element exactly; there is nothing to quantise",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{quantise: {codec: emr}}]}]",
        "r.yaml:2:48: codec: emr needs all models at once; merge: emr gives what it stores",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{quantise: {codec: 'claq:of=weight'}}]}]",
        "r.yaml:2:48: codec: claq:of=weight codes weights, and an edit changes deltas",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{quantise: {codec: 4}}]}]",
        "r.yaml:2:48: codec: a codec is written as text, low_rank:rank=16, or as {name: {field: value}}",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [quantise]}]",
        'r.yaml:2:29: quantise needs "codec"',
    ),
    # Statistics that edits read.
    (
        "base: b\nmodels: [{model: m, label: x, edits: [{bias_by_gradient: {density: 1, k: 1}}]}]",
        'r.yaml:2:39: bias_by_gradient needs a statistics file for the model "x"; '
        "write statistics: FILE beside the model",
    ),
    (
        "models: [{model: m, edits: [{bias_by_gradient: {density: 1, k: 1}}], statistics: g.st}]\n"
        "base: b\nmerge: {fisher: {statistics: {m0: f.st}}}",
        'r.yaml:1:29: fisher and bias_by_gradient both read statistics of the model "m0"; '
        "a model names one file: edit it in a recipe of its own, and merge that",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{bias_by_sign: {density: 1, k: 1}}], statistics: g.st}]",
        'r.yaml:1:1: unknown key "statistics"; sum has no fields',
    ),
    # Fault 8: a list or a text at the top.
    (
        "- model: m",
        "r.yaml:1:1: a recipe must be a mapping of keys to values, not a list; start with base: and models:",
    ),
    # Fault 12: no models.
    ("base: b\nmodels: []", "r.yaml:2:9: the recipe has no models; write models: [{model: PATH}]"),
    ("base: b\n", "r.yaml:1:1: the recipe has no models; write models: [{model: PATH}]"),
    ("base: b\nmodels: [./m]", 'r.yaml:2:10: a model must be a mapping, not "./m"; write {model: ./m}'),
    ("base: b\nmodels: [{label: x}]", 'r.yaml:2:10: a model needs "model"; write {model: PATH}'),
    # Faults 13, 16 and vocabulary remedies: not yet.
    (ONE + "slices: [{layer_range: [0, 99]}]", "r.yaml:3:1: layer ranges (slices) are not supported yet"),
    (
        "base: b\nmodels: [{model: m, layer_range: [3, 1]}]",
        "r.yaml:2:21: layer ranges (layer_range) are not supported yet",
    ),
    (
        ONE + "where: '/(a+)+$/'",
        'r.yaml:3:8: regular expressions are not supported yet: "/(a+)+$/"; '
        'where is a glob over whole tensor names, as in "*.mlp.*"',
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{amplify: {factor: 2}, regex: 'x'}]}]",
        "r.yaml:2:52: regular expressions (regex) are not supported yet",
    ),
    (
        ONE + "tokenizer: union",
        "r.yaml:3:12: vocabulary remedies (union, pad) are not supported yet; "
        "name the model whose tokenizer to take",
    ),
    (
        ONE + "rules: [{where: '*', merge: sum}]",
        "r.yaml:3:1: per-tensor overrides (rules) are not supported yet",
    ),
    # Spaces, base and scale.
    (
        "models: [{model: m}]",
        "r.yaml:1:1: sum merges deltas and there is no base to take them from; add base: PATH",
    ),
    (
        "models: [{model: m}, {model: n}]\nmerge: linear\nspace: delta",
        "r.yaml:2:8: linear merges deltas and there is no base to take them from; "
        "add base: PATH, or ask for space: weight",
    ),
    (
        "models: [{model: m, edits: [{amplify: {factor: 2}}]}]\nmerge: linear",
        "r.yaml:1:28: edits change deltas and there is no base to take them from; add base: PATH",
    ),
    (
        ONE + "merge: linear\nscale: 0.5",
        "r.yaml:4:8: scale multiplies a merged delta, and in weight space there is none; "
        "leave it out, or ask for space: delta",
    ),
    (TWO + "merge: elect\nspace: weight", "r.yaml:4:8: elect works in delta space, not in weight space"),
    (
        TWO + "space: wieght",
        'r.yaml:3:8: space must be delta or weight, not "wieght"; did you mean "weight"?',
    ),
    # Numbers of models, labels.
    (ONE + "merge: slerp", "r.yaml:3:8: slerp takes exactly 2 models, not 1"),
    (ONE + "merge: model_stock", "r.yaml:3:8: model_stock takes at least 2 models, not 1"),
    (
        "base: b\nmodels: [{model: m, label: x}, {model: n, label: x}]",
        'r.yaml:2:50: the label "x" is used twice; labels must differ: they seed the random masks',
    ),
    (
        "base: b\nmodels: [{model: m, label: m1}, {model: n}]",
        'r.yaml:2:33: the label "m1" is used twice; labels must differ: they seed the random masks',
    ),
    (
        "base: b\nmodels: [{model: m, label: base}]",
        'r.yaml:2:28: the label "base" means the base; choose another',
    ),
    (
        "base: b\nmodels: [{model: m, label: 3}]",
        'r.yaml:2:28: label must be text, not 3; write label: "3"',
    ),
    (
        'base: b\nmodels: [{model: m, label: "a\\0b"}]',
        'r.yaml:2:28: the label "a\\x00b" must be at most 100 printable characters',
    ),
    (
        TWO + "merge: {tall: {task: maths}}",
        'r.yaml:3:22: tall: no model has the label "maths"; did you mean "math"?',
    ),
    (
        TWO + "merge: {consensus: {k: 3}}",
        "r.yaml:3:24: consensus asks for 3 models that agree, and there are 2; lower k to 2 or less",
    ),
    (
        "models: [{model: a, weight: 1}, {model: b, weight: -1}]\nmerge: linear",
        "r.yaml:2:8: linear divides by the sum of the weights, which is zero",
    ),
    # The rest of the keys.
    (ONE + "seed: -1", "r.yaml:3:7: seed must be a whole number from 0 to 2^64 - 1, not -1"),
    (ONE + "seed: 1.5", "r.yaml:3:7: seed must be a whole number from 0 to 2^64 - 1, not 1.5"),
    (
        ONE + "seed: 18446744073709551616",
        "r.yaml:3:7: seed must be a whole number from 0 to 2^64 - 1, not 18446744073709551616",
    ),
    (
        ONE + "dialect: paperr",
        'r.yaml:3:10: dialect must be paper, authors or mergekit, not "paperr"; did you mean "paper"?',
    ),
    (ONE + "nonfinite: no", 'r.yaml:3:12: nonfinite must be refuse, keep or zero, not "no"'),
    (
        ONE + "dtype: float8",
        'r.yaml:3:8: dtype must be base, float32, bfloat16 or float16, not "float8"; did you mean "float32"?',
    ),
    (
        ONE + "tokenizer: mth",
        'r.yaml:3:12: tokenizer must be base or the label of a model, not "mth"; the labels are: base, m0',
    ),
    ("base:\nmodels: [{model: m}]", "r.yaml:1:6: base must be a path, an id or a recipe, not nothing"),
    (
        ONE + "merge: {tsv: {dialect: mergekit}}",
        'r.yaml:3:24: tsv has no dialect "mergekit"; write `{tsv: {dialect: paper or authors}}`',
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop: {density: 1}, dialect: mergekit}]}]",
        "r.yaml:2:50: dialect stands beside the operation; "
        "write it among the operation's fields: {name: {dialect: …}}",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop: {density: 1}, amplify: {factor: 2}}]}]",
        "r.yaml:2:29: two operations in one edit: drop, amplify; give each its own entry",
    ),
    (
        "base: b\nmodels: [{model: m, edits: [{drop: {density: 1}, whre: x}]}]",
        'r.yaml:2:50: unknown key "whre"; did you mean "where"?',
    ),
    (
        "base: b\nmodels: [{model: m, edits: drop}]",
        'r.yaml:2:28: edits must be a list, not "drop"; write edits: [{name: {field: value}}]',
    ),
]

EXAMPLES = {
    "breadcrumbs": "density: 0.15",
    "breadcrumbs_ties": "density: 0.15",
    "cabs": "n: 1\nm: 4",
    "dare": "density: 0.5",
    "dare_ties": "density: 0.5",
    "della": "density: 0.7",
    "della_linear": "density: 0.7",
    "dppa": "factors: [1.8, 1.0]",
    "emr": "task: math",
    "fedavg": "examples: {math: 3, code: 1}",
    "fisher": "statistics: {math: m.st, code: c.st}",
    "k_dare": "density: 0.5\nk: 0.5",
    "magnitude": "density: 0.2",
    "magprune": "density: 0.7",
    "passthrough": "model: math",
    "regmean": "statistics: {math: m.st, code: c.st}",
    "tall": "task: math",
    "twin": "task: math",
}
