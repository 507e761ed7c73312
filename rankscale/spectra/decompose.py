"""From a matrix of embeddings to its singular values, by the cheapest route that is exact enough."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rankscale.spectra.accumulate import SpectrumAccumulator, blocks, check_shape, check_variation

METHODS = ("auto", "svd", "gram", "tsqr")

# "auto" leaves the Gram route where a singular value is this small a share of the largest: its relative error,
# about 2e-16 / share^2, is then 1e-6 and grows fast.
AUTO_RESOLUTION = 1e-5


def spectrum(z: Tensor | np.ndarray | SpectrumAccumulator, center: bool = False, method: str = "auto") -> Tensor:
    """Singular values of an embedding matrix, largest first.

    z: (n_clip, dim) of any floating type, in memory or memory-mapped; or an accumulator (its own method counts).
    center: subtract the mean clip first, so that a constant offset does not count as a direction.
    method:
        "gram" eigenvalues of Z^T Z, in blocks: the fastest. Values below 6e-8 of the largest are lost; a
            `SpectrumWarning` says so.
        "tsqr" a QR decomposition by blocks: exact to 1e-15 of the largest value; constant memory, a few times slower.
        "svd" LAPACK's on the whole matrix: as exact; needs a float64 copy of it.
        "auto" (default) "svd" if there are no more clips than dimensions, else "gram"; then "tsqr" if a value below
            1e-5 of the largest shows up, as it does in every centred output of a layer norm.
    Returns (min(n_clip, dim),) float64 on the CPU, never negative. Raises ValueError for a wrong shape or type, NaN or
    infinity (the first such row is named), fewer than two rows, a matrix of zeros, or equal rows to be centred.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: choose {', '.join(METHODS)}")
    if isinstance(z, SpectrumAccumulator):
        return z.spectrum(center)
    z = check_shape(z)
    if method == "svd" or (method == "auto" and len(z) <= z.shape[1]):
        return _whole(z, center)
    device = z.device if isinstance(z, Tensor) else "cpu"
    if method == "tsqr":
        return SpectrumAccumulator(z.shape[1], "tsqr", device).update(z).spectrum(center)
    total = SpectrumAccumulator(z.shape[1], "gram", device).update(z)
    if method == "gram":
        return total.spectrum(center)
    total._check(center)
    values, lost = total._decompose(center)
    if lost or values[-1] < AUTO_RESOLUTION * values[0]:
        return SpectrumAccumulator(z.shape[1], "tsqr", device).update(z).spectrum(center)
    return values


def _whole(z: Tensor | np.ndarray, center: bool) -> Tensor:
    """LAPACK's singular values of the whole matrix, in float64."""
    rows = torch.cat([*blocks(z)]) if len(z) else torch.zeros(z.shape, dtype=torch.float64)
    mean = rows.mean(dim=0)
    spread = (rows - mean).square().mean(dim=0).max().sqrt()
    check_variation(len(rows), float(mean.abs().max()), float(spread), center)
    return torch.linalg.svdvals(rows - mean if center else rows).cpu()
