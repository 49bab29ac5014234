"""What `explain` says that the records cannot: formulas in plain text, sources, and when not to use a method.

Notation: d is a model's delta, w its weight, T the number of models, W a model's weights, B the base. A
caution is a property of the formula, or a result that its source reports; none is our own measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FACTS", "Fact"]


@dataclass(frozen=True)
class Fact:
    """A formula, its source and its limits.

    `mergekit` is a caution about that dialect; `example` gives values for fields without a default, and tests run the
    method with it; `statistics` is the kind of file that a merge reads beside its models (an edit's record says its
    own).
    """

    formula: str
    source: str = ""
    avoid: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)
    mergekit: str = ""
    statistics: str = ""


_TIES = "Yadav et al. 2023, arXiv 2306.01708"
_DARE = "Yu et al. 2023, arXiv 2311.03099"
_DELLA = "Deep et al. 2024, arXiv 2406.11617"
_DPPA = "Zhu et al. 2024, arXiv 2403.02799"
_CRUMBS = "Davari and Belilovsky 2023, arXiv 2312.06795"
_EMR = "Huang et al. 2024, arXiv 2405.17461"
_TALL = "Wang et al. 2024, arXiv 2405.07813"
_TASK = "Ilharco et al. 2022, arXiv 2212.04089"
_SOUP = "Wortsman et al. 2022, arXiv 2203.05482"
_ISO = "Marczak et al. 2025, arXiv 2502.04959"
_TSV = "Gargiulo et al. 2024, arXiv 2412.00081"
_FISHER = "Matena and Raffel 2021, arXiv 2111.09832"
_STOCK = "Jang et al. 2024, arXiv 2403.19522"
_PCB = "Du et al. 2024, arXiv 2410.02396"
_CABS = "Yang et al. 2025, arXiv 2503.01874"
_BITDELTA = "Liu et al. 2024, arXiv 2402.10193"
_UNIFIED = "A Unified View of Delta Parameter Editing, 2024, arXiv 2410.13841"
_TWIN = "Lu et al. 2024, arXiv 2406.15479"

_LARGE_DELTAS = (
    "Deltas are large: where many exceeded 0.01, DARE's authors saw a model destroyed by dropping a tenth. "
    "The variance that dropping adds to an element is d^2 (1 - density) / density."
)
_NOT_SPARSE = (
    "The delta is to be stored in less space: for k other than 0 nothing becomes zero. Deltas are large: the "
    "variance added to an element is (1-k)^2 d^2 (1 - density) / density; that the loss stays is first order only."
)
_ONE_BIT = (
    "The delta is to be stored in less space: the output is a whole model, and `deltasmith pack` stores the bits. "
    "Small tensors matter: norms and biases are quantised too, which `pack` leaves exact."
)
_ABLATION = "A useful model is wanted: it is an ablation that shows what chance does for DARE."
_TRIM = (
    "All tensors matter alike: one threshold for the whole model may empty tensors that changed little. "
    "Trimming is biased, so the merged delta is short; TIES' authors search the scale from 0.8 to 2.5."
)
_ELECTION = (
    "Every model's contribution must survive: an election discards the outvoted part. In DELLA's tables TIES "
    "on a language and a code model scores 9.6 on MBPP with the election and 34.6 without it (on AlpacaEval "
    "77.4 and 64.9)."
)
_ONE_TASK = "One checkpoint must serve all tasks: the result is for the one task that is named."
_SPHERE = (
    "You expect much from it over `linear`: checkpoints from one base differ by a small angle, where the arc "
    "and the straight line nearly coincide."
)
_MATRICES = "Time or memory is short: it decomposes every matrix, and needs each whole in float32."
_STATISTICS = "You have no data to collect statistics with; they are taken on each model's own training data."
_MEAN = "The models do not share a base, or lie far apart: their mean may be worse than any of them."
_SUM = (
    "There are many models of weight 1 and the scale is 1: a sum moves the base T times as far. Scales of "
    "0.3 to 0.5 are usual."
)
_ONE_FACTOR = (
    "One factor per tensor, L1(d) / L1(kept), stands in for the division by the probability: erratic on "
    "short tensors"
)
_BIASED = (
    f"{_ONE_FACTOR}, and biased: at density 0.4 and epsilon 0.1 the largest tenth comes out at 1.11 of its "
    "size on average, the smallest at 0.71."
)

_MAGPRUNE = (
    "keep the element of rank r in its row of n (r = 0: the largest) with p = density + window/2 - "
    "window r/n, as d / p"
)

FACTS: Mapping[str, Fact] = {
    "amplify": Fact("factor d", "Zheng et al. 2024, arXiv 2404.16792", example={"factor": 1.5}),
    "amplify_partitions": Fact(
        "partition j = kept at densities[j] but not at densities[j-1]; it becomes max(factors[j:]) d",
        _DPPA,
        "You cannot search the factors: the paper's own procedure is a greedy search over benchmark scores.",
        {"factors": [1.8, 1.0]},
    ),
    "average": Fact("sum(w W) / sum(w)", _SOUP, _MEAN),
    "bias_by_gradient": Fact(
        "k d where d g < 0, else d (1-kp)/(1-p), p = 1 - density, g the gradient of the loss at the model",
        _UNIFIED,
        f"{_ABLATION} In the paper's table it leaves below 0.2 of 76 on GSM8K for five of six k.",
        {"density": 0.5, "k": 0.7},
    ),
    "bias_by_sign": Fact(
        "k d where d < 0, else d (1-kp)/(1-p), p = 1 - density",
        _UNIFIED,
        _ABLATION,
        {"density": 0.5, "k": 0.7},
    ),
    "bitdelta": Fact("B + scale sum(w sign(d) mean|d|), per tensor", _BITDELTA, _ONE_BIT),
    "breadcrumbs": Fact(
        "B + scale sum(w middle(d)); middle drops the gamma largest of each row, then keeps the next density",
        _CRUMBS,
        "Rows are short: a row of fewer than 1 / density elements keeps nothing.",
        {"density": 0.15},
    ),
    "breadcrumbs_ties": Fact(
        "breadcrumbs, then the election of ties instead of the sum",
        f"{_CRUMBS}; the combination is mergekit's, which adds what agrees where this averages it",
        _ELECTION,
        {"density": 0.15},
    ),
    "cabs": Fact(
        "model by model: the n largest |d| of every m elements, none where an earlier one kept its own; sum",
        _CABS,
        "There are more than m / n models: nothing is left for the last. The order of the models matters.",
        {"n": 64, "m": 256},
    ),
    "cabs_filled": Fact(
        "as cabs, but filled up to n from positions already taken", _CABS, "", {"n": 64, "m": 256}
    ),
    "consensus": Fact(
        "tau = sum(w d); keep tau where |d_t| > mask_scale |tau - d_t| for at least k models t",
        _TALL,
        "There are two models and k is 2: only what both need stays.",
    ),
    "dare": Fact("B + scale sum(w drop(d))", _DARE, _LARGE_DELTAS, {"density": 0.5}, _ONE_FACTOR + "."),
    "dare_ties": Fact(
        "drop(d), then the election of ties instead of the sum",
        f"{_DARE}; {_TIES}",
        _ELECTION,
        {"density": 0.5},
        _ONE_FACTOR + ".",
    ),
    "della": Fact(f"{_MAGPRUNE}; then the election of ties", _DELLA, _ELECTION, {"density": 0.7}, _BIASED),
    "della_linear": Fact(
        f"{_MAGPRUNE}; then B + scale sum(w kept)", _DELLA, _LARGE_DELTAS, {"density": 0.7}, _BIASED
    ),
    "dppa": Fact(
        "B + scale sum(w amplify_partitions(d))",
        f"{_DPPA}; how it merges several domains is not in the released code, the sum is our reading",
        "DARE at a density of 0.1 keeps 90 % of the model's score: by a summary of the paper, DPPA is for "
        "where it does not.",
        {"factors": [1.8, 1.0]},
    ),
    "drop": Fact(
        "d / density with probability density, else 0",
        _DARE,
        _LARGE_DELTAS,
        {"density": 0.5},
        _ONE_FACTOR + ".",
    ),
    "drop_by_rank": Fact(_MAGPRUNE, _DELLA, _LARGE_DELTAS, {"density": 0.7}, _BIASED),
    "drop_partly": Fact(
        "d (1-kp)/(1-p) with probability density = 1 - p, else k d",
        _UNIFIED,
        _NOT_SPARSE,
        {"density": 0.5, "k": 0.5},
    ),
    "drop_unscaled": Fact(
        "d with probability density, else 0",
        _DARE,
        "You want what drop gives: without rescaling the expected delta is density d.",
        {"density": 0.5},
    ),
    "dynamic_prune": Fact(
        "keep the largest |d| of each decoder linear, its share raised by outliers of its layer and its own",
        _DPPA,
        "The model has no decoder layers with numbered linears: nothing would be pruned.",
        {"density": 0.2},
    ),
    "elect": Fact(
        "s = sign(sum(w d)); sum(w d) / sum(w) over the models with sign(w d) = s", _TIES, _ELECTION
    ),
    "elect_max": Fact("s = sign(sum(w d)); the w d of sign s that is largest in magnitude", _TIES, _ELECTION),
    "elect_sum": Fact("s = sign(sum(w d)); sum(w d) over the models with sign(w d) = s", _TIES, _ELECTION),
    "emr": Fact(
        "tau = unify(d); with a task t: lambda_t tau where d_t and tau agree in sign, else 0; without: tau",
        _EMR,
        f"{_ONE_TASK} The unified vector without mask and rescaler is larger than any model's delta.",
        {"task": "math"},
    ),
    "expo": Fact(
        "B + (1 + alpha) d, with B the model before alignment and one aligned model",
        "Zheng et al. 2024, arXiv 2404.16792",
        "Nothing can be evaluated: whether extrapolation helps depends on the model and the data.",
    ),
    "fedavg": Fact("sum(examples W) / sum(examples)", "McMahan et al. 2016, arXiv 1602.05629", _MEAN),
    "fisher": Fact(
        "sum(c F W) / sum(c F), c = w / |F|, F the diagonal Fisher information",
        _FISHER,
        _STATISTICS,
        statistics="fisher",
    ),
    "fisher_added": Fact(
        "sum(c (F + floor) W) / sum(c (F + floor)), c = w / (|F| + floor)",
        _FISHER,
        _STATISTICS,
        statistics="fisher",
    ),
    "iso_c": Fact("A = sum(w d) = U S V'; mean(S) U V'", _ISO, _MATRICES),
    "iso_cts": Fact(
        "leading common directions of sum(w d), then each model's own, orthogonalised, all at mean strength",
        _ISO,
        _MATRICES,
    ),
    "k_dare": Fact(
        "B + scale sum(w e), e = d (1-kp)/(1-p) with probability density = 1 - p, else k d",
        _UNIFIED,
        _NOT_SPARSE,
        {"density": 0.5, "k": 0.5},
    ),
    "karcher": Fact("the direction of least weighted squared arc length, at the mean norm", "", _SPHERE),
    "keep_largest": Fact(
        "the int(density N) largest |d| of the whole model, else 0", _TIES, _TRIM, {"density": 0.2}
    ),
    "keep_largest_in_tensor": Fact(
        "the int(density n) largest |d| of each tensor, else 0",
        "mergekit's reading of TIES' trim",
        "You compare with published TIES results: there one threshold serves the whole model.",
        {"density": 0.2},
    ),
    "keep_middle": Fact(
        "drop the gamma largest |d| of each row, keep the next density, drop the rest",
        _CRUMBS,
        "Rows are short: a row of fewer than 1 / density elements keeps nothing.",
        {"density": 0.15},
    ),
    "linear": Fact("sum(w W) / sum(w)", _SOUP, _MEAN),
    "linear_sum": Fact("sum(w W)", "", "The weights do not add up to 1: every parameter changes its size."),
    "low_rank": Fact("U_k S_k V_k' of each matrix", _TWIN, _MATRICES, {"density": 0.1}),
    "magnitude": Fact(
        "B + scale sum(w keep_largest(d))", f"{_TIES} (its trim alone)", _TRIM, {"density": 0.2}
    ),
    "magprune": Fact(
        f"{_MAGPRUNE}; then B + scale sum(w kept)", _DELLA, _LARGE_DELTAS, {"density": 0.7}, _BIASED
    ),
    "mean": Fact("sum(w d) / sum(w)", _SOUP, _MEAN),
    "median": Fact(
        "the middle value, position by position", "", "There are two models: it is their average."
    ),
    "model_stock": Fact(
        "B + t mean(d), t = T c / (1 + (T - 1) c), c the mean cosine of the deltas, per tensor",
        _STOCK,
        "The models were trained for different tasks: their deltas are nearly orthogonal, and t is near 0.",
    ),
    "model_stock_rows": Fact("as model_stock, with one t per row", _STOCK, ""),
    "multislerp": Fact("the normalised weighted mean direction, at the weighted mean norm", "", _SPHERE),
    "multislerp_unnormalised": Fact("as multislerp, at the weighted sum of the norms", "", _SPHERE),
    "nuslerp": Fact("the arc between two tensors at t = w1 / (w0 + w1)", "", _SPHERE),
    "nuslerp_columns": Fact("as nuslerp, along the first axis, vector by vector", "", _SPHERE),
    "nuslerp_rows": Fact("as nuslerp, along the last axis, vector by vector", "", _SPHERE),
    "passthrough": Fact("W of the named model", "", "", {"model": "math"}),
    "pcb": Fact(
        "score = exp(T norm^2) tanh(d sum(d)); s = the top `ratio` mapped to [0, 1]; sum(w d s) / sum(s)",
        f"{_PCB}; one of three formulas in the released code, which one the tables use is not established",
        "Deltas are small, as after most fine-tuning: the tanh is then linear, and deltas only scale it.",
    ),
    "pcb_pairwise": Fact("as pcb, with sum_j tanh(n n_j), n the signed normalised magnitudes", _PCB, ""),
    "pcb_signed": Fact("as pcb, with tanh(d sum(n)), n the signed normalised magnitudes", _PCB, ""),
    "quantise": Fact(
        "decode(encode(d)) of the codec",
        f"{_UNIFIED}, and the codec's own",
        _ONE_BIT,
        {"codec": "bitdelta"},
    ),
    "regmean": Fact(
        "W' = (sum(w G))^-1 sum(w G W'), G = X'X of each layer's inputs",
        "Jin et al. 2022, arXiv 2212.09849",
        f"{_STATISTICS} With few examples the sum of the Grams is singular.",
        statistics="gram",
    ),
    "sce": Fact(
        "c = share of squared deltas where variance is highest; sum(c w d) / sum(c w) over those that agree",
        "Wan et al. 2024, arXiv 2408.07990",
        "Models should count alike: those that changed most count most.",
    ),
    "slerp": Fact(
        "sin((1-t) a)/sin(a) A + sin(t a)/sin(a) B, a the angle between the tensors A and B", "", _SPHERE
    ),
    "sum": Fact("B + scale sum(w d)", _TASK, _SUM),
    "tall": Fact(
        "tau = sum(w d); tau where |d_t| > mask_scale |tau - d_t|, else 0", _TALL, _ONE_TASK, {"task": "math"}
    ),
    "task_arithmetic": Fact("B + scale sum(w d)", _TASK, _SUM),
    "ties": Fact(
        "keep the largest |d|; s = sign(sum(w d)); B + scale sum(w d) / sum(w) over those of sign s",
        _TIES,
        f"{_TRIM} {_ELECTION}",
    ),
    "tsv": Fact(
        "the int(min(m, n) / T) leading singular triplets of each delta, U and V made orthogonal together",
        _TSV,
        f"{_MATRICES} The scale is tuned on validation data by its authors.",
    ),
    "tsv_lossless": Fact("as tsv, without truncation", _TSV, _MATRICES),
    "twin": Fact(
        "s = shared_scale sum(w d); s + low_rank(w_t d_t - s) for the task t",
        _TWIN,
        f"{_ONE_TASK} The paper mixes by a router for every input.",
        {"task": "math"},
    ),
    "twin_magnitude": Fact(
        "as twin, keeping the largest magnitudes instead", _TWIN, _ONE_TASK, {"task": "math"}
    ),
    "unify": Fact(
        "s = sign(sum(w d)), negative where the sum is 0; s times the largest |w d| of sign s",
        _EMR,
        "It is to be used as it is: it is larger than any model's delta, and meant for masks and rescalers.",
    ),
    "wudi": Fact(
        "from sum(w d), Adam on sum_t |(x - d_t) d_t'|^2 / |d_t|^2",
        "Cheng et al. 2025, arXiv 2503.08099",
        f"{_MATRICES} An element moves by at most steps x learning_rate: set the rate by the deltas' size.",
    ),
}
