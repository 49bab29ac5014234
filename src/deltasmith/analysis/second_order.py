"""What a recipe's random edit costs on average over its seeds: around the mean of what the recipe makes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltasmith import api
from deltasmith.analysis.curvature import Arrays, Curved, SecondOrder, fisher_excess, hessian_excess
from deltasmith.analysis.statistics_files import stored_names
from deltasmith.analysis.variances import variances
from deltasmith.recipe.model import Recipe

if TYPE_CHECKING:
    from deltasmith.analysis.ends import End
    from deltasmith.analysis.preparing import Ground

__all__ = ["excess_around", "network_variances"]


def network_variances(ground: Ground, recipe: Recipe) -> Arrays:
    """Return the variance over seeds of every element that a recipe's random edit moves, by the network's names.

    Raises:
        RecipeError: the variance of such a recipe is not known, see `variances`. RefusedError: a parameter of the
            network is no tensor of the recipe's result.
    """
    request = ground.request
    plan = api.plan(recipe, threads=request.threads, memory=request.memory).built.plan
    found = variances(plan, threads=request.threads or api.available_threads(), stop=ground.stop)
    parameters = {name: tuple(p.shape) for name, p in ground.loaded.network.named_parameters()}
    shapes = {row.name: row.spec.shape for row in plan.rows if row.spec.dtype.floating}
    names = stored_names(parameters, shapes, "the recipe")
    return {name: found[stored] for name, stored in names.items() if stored in found}


def excess_around(ground: Ground, mean: End, start_loss: float, spread: Arrays) -> SecondOrder:
    """Estimate ½ Σ H_ii v_i (or Fisher's diagonal for H's) at `mean`, the edit's mean over its seeds (`ends.mean_of`).

    `spread` are the variances v. Where the mean is the start of the path, its network is used; else the mean's is
    loaded beside it. `start_loss` is the loss at the start: `shift` counts from there.

    Raises what loading raises, and what `hessian_excess` and `fisher_excess` raise.
    """
    from deltasmith.analysis.torch_objective import TorchObjective
    from deltasmith.evaluate.models.transformers_loading import memory_errors

    request, laid = ground.request, ground.laid
    at_start = mean == ground.start
    if not at_start:
        ground.say("loading the mean of the random edit", 0, 0)
    network = ground.loaded.network if at_start else ground.load(mean.source).network
    with memory_errors(request.batch):
        shift = 0.0 if at_start else laid.mean_loss(network) - start_loss
        objective = TorchObjective(network, {}, laid.chunks, laid.counts, laid.loss)
        return replace(_estimate(ground, objective, spread), at=mean.name, shift=shift)


def _estimate(ground: Ground, objective: Curved, spread: Arrays) -> SecondOrder:
    """Estimate the excess where the objective is; without any variance it is known to be 0."""
    request = ground.request
    assert request.second_order != "none", "somebody asks for an estimate"
    if not any(v.any() for v in spread.values()):
        nothing = dict.fromkeys(spread, 0.0)
        return SecondOrder(request.second_order, nothing, 0.0, 0.0, (0.0, 0.0), 0)
    options: dict[str, Any] = {
        "probes": request.probes,
        "seed": request.seed,
        "asked": lambda: ground.stop.asked,
        "say": lambda done, of: ground.say("probes of the second order", done, of),
    }
    if request.second_order == "hessian":
        return hessian_excess(objective, spread, **options)
    return fisher_excess(objective, ground.laid.sampled, spread, **options)
