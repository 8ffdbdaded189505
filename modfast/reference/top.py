"""The largest values of each unit, taken up batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor


def update_top_(top_values: Tensor, top_indices: Tensor, values: Tensor, first: int) -> Tensor:
    """Takes up the largest of `values` `[n, d]`, sample i being index first + i; how many are NaN.

    `top_values` and `top_indices` `[d, k]` hold the largest so far of each column, strongest first;
    places that are still free hold -inf and -1. Of equal values the one that came first is kept.
    """
    nan = values.isnan()
    index = torch.arange(first, first + len(values), device=values.device).expand(values.T.shape)
    # -inf stays behind the free places.
    every_value = torch.cat([top_values, values.where(~nan, -torch.inf).T], 1)
    every_index = torch.cat([top_indices, index], 1)
    k = top_values.shape[1]
    largest, order = every_value.sort(dim=1, descending=True, stable=True)
    top_values.copy_(largest[:, :k])
    top_indices.copy_(every_index.gather(1, order[:, :k]))
    return nan.sum()
