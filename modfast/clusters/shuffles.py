"""Weights without whatever modularity they have, to compare with."""

from __future__ import annotations

import numpy as np

from modfast.clusters.wiring import Array

NULLS = ("layer", "nonzero", "nonzero-distribution", "all-distribution", "row", "col")
_WIDTH = 0.01
"""Standard deviation of the kernels whose sum is a distribution of weights, as upstream."""


def shuffled(values: Array, null: str, random: np.random.Generator) -> Array:
    """A weight `[rows, cols, m]` with its entries in other places, or with others.

    Args:
        values: the weight.
        null: "layer": all entries change places; "nonzero": those other than 0 do among themselves;
            "row", "col": entries within each row, or column, do; "nonzero-distribution": entries
            other than 0 are drawn from a kernel density estimate of theirs; "all-distribution": the
            same in the places of "layer".
        random: draws.

    Example:
        >>> weight = np.array([[[1.0], [0.0]], [[2.0], [3.0]]])
        >>> found = shuffled(weight, "nonzero", np.random.default_rng(0))
        >>> found[0, 1, 0], np.sort(found.ravel()).tolist()
        (np.float64(0.0), [0.0, 1.0, 2.0, 3.0])
    """
    if null == "row":
        rows = values.reshape(len(values), -1)
        return random.permuted(rows, axis=1).reshape(values.shape)
    if null == "col":
        cols = np.moveaxis(values, 1, 0)
        flat = random.permuted(cols.reshape(len(cols), -1), axis=1)
        return np.ascontiguousarray(np.moveaxis(flat.reshape(cols.shape), 0, 1))
    flat = values.ravel()
    if null in ("layer", "all-distribution"):
        flat = random.permutation(flat)
    if null == "layer":
        return flat.reshape(values.shape)
    found = np.zeros_like(flat)
    places = flat.nonzero()[0]
    own = flat[places]
    if null == "nonzero":
        found[places] = random.permutation(own)
    elif len(own):
        drawn = own[random.integers(len(own), size=len(own))]
        found[places] = drawn + _WIDTH * random.standard_normal(len(own))
    return found.reshape(values.shape)
