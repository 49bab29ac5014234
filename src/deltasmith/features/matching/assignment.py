"""The assignment of children to parents that maximises the sum of correlations: a check on mutual best partners."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deltasmith.errors import MissingExtraError
from deltasmith.features.matching.correlation import Correlated

__all__ = ["hungarian"]


def hungarian(correlated: Correlated, weak: float) -> npt.NDArray[np.int32]:
    """Choose at most one child for each parent, and one parent for each child, so that the sum of r is largest.

    Only pairs of r >= weak may be chosen; `weak` is at least the `keep` that `correlated` was made with. Returns the
    child of each parent, -1 for none. Where several assignments have the same sum, scipy's choice stands.

    The graph of such pairs falls into small components, and its absent pairs are not stored: a matrix of (parents,
    children) is never made. Every parent also gets a partner of its own, worth nothing, to stay alone with; so there
    is a full matching, of which scipy finds the cheapest (LAPJVsp), in all components at once.

    Raises:
        MissingExtraError: scipy is missing.

    >>> from deltasmith.features.codes import Codes
    >>> from deltasmith.features.matching.correlation import correlate
    >>> codes = Codes.of_dense(np.eye(3, dtype=np.float32)[[0, 1, 2, 2]])
    >>> hungarian(correlate(codes, codes), 0.5).tolist()
    [0, 1, 2]
    """
    try:
        from scipy.sparse import csgraph, csr_matrix
    except ImportError as cause:
        raise MissingExtraError(
            "an assignment needs scipy", fix='pip install "deltasmith[features]"'
        ) from cause
    if weak < correlated.keep:
        raise ValueError(f"pairs below {correlated.keep} were not kept")
    parents, children = len(correlated.of_parents.best), len(correlated.of_children.best)
    partner = np.full(parents, -1, np.int32)
    enough = correlated.r >= np.float32(weak)
    if not enough.any():
        return partner
    alone = np.arange(parents)
    rows = np.concatenate((correlated.parents[enough], alone))
    columns = np.concatenate((correlated.children[enough], children + alone))
    # Costs of 2 - r, and 2 alone: a stored cost of 0 would count as an absent pair.
    costs = np.concatenate((2.0 - correlated.r[enough], np.full(parents, 2.0)))
    graph = csr_matrix((costs, (rows, columns)), shape=(parents, children + parents))
    chosen_rows, chosen = csgraph.min_weight_full_bipartite_matching(graph)
    partner[chosen_rows] = np.where(chosen < children, chosen, -1)
    return partner
