"""The spectrum of an embedding matrix, and the numbers that summarise it. All arithmetic is in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DEFAULT_EPS = 1e-7  # the paper's constant for float32 embeddings


def check_embeddings(z: Tensor | np.ndarray) -> Tensor:
    """An embedding matrix as a float64 tensor, or a ValueError that says what is wrong with it.

    z: (n_clip, dim), floating point, finite, at least two rows, not all zero.
    The first row that holds NaN or infinity is named.
    """
    z = torch.as_tensor(z)
    if z.ndim != 2:
        raise ValueError(f"embeddings must have shape (n_clip, dim), got {tuple(z.shape)}")
    if not z.dtype.is_floating_point:
        raise ValueError(f"embeddings must be floating point, got {z.dtype}; convert with z.float()")
    if z.shape[0] < 2:
        raise ValueError(f"a rank needs at least two rows (clips), got {z.shape[0]}")
    bad = ~torch.isfinite(z).all(dim=1)
    if bad.any():
        raise ValueError(
            f"row {int(bad.nonzero()[0])} of the embeddings holds NaN or infinity ({int(bad.sum())} such rows)"
        )
    if not z.any():
        raise ValueError("the embeddings are all zero: they have no spectrum")
    return z.to(torch.float64)


def spectrum(z: Tensor | np.ndarray, center: bool = False) -> Tensor:
    """Singular values of an embedding matrix, largest first.

    z: (n_clip, dim). center: subtract the mean clip first, so that a constant offset does not count as a direction.
    Returns (min(n_clip, dim),) float64, never negative. Raises ValueError as `check_embeddings` does, and when
    all rows are equal and center is asked for.
    """
    z = check_embeddings(z)
    if center:
        scale = z.abs().max()
        z = z - z.mean(dim=0)
        if z.abs().max() <= 1e-14 * scale:
            raise ValueError("all rows of the embeddings are equal: nothing is left after centring")
    return torch.linalg.svdvals(z)


def _singular_values(z_or_spectrum: Tensor | np.ndarray, center: bool = False) -> Tensor:
    """A spectrum is taken as it is; a matrix is decomposed."""
    values = torch.as_tensor(z_or_spectrum)
    if values.ndim != 1:
        return spectrum(values, center)
    if center:
        raise ValueError(
            "a spectrum cannot be centred after the fact: pass the embeddings, or spectrum(z, center=True)"
        )
    values = values.to(torch.float64)
    if not torch.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError("a spectrum must hold finite singular values, none negative and not all zero")
    return values.sort(descending=True).values


def _entropy(p: Tensor) -> Tensor:
    """Shannon entropy in nats; 0 ln 0 counts as 0."""
    return torch.special.entr(p).sum()


def rankme(z: Tensor | np.ndarray, eps: float = DEFAULT_EPS, center: bool = False) -> float:
    """Effective rank of an embedding matrix as in RankMe: exp(-sum p ln p), p = sigma / sum(sigma) + eps.

    z: (n_clip, dim) embeddings, or (k,) singular values.
    Returns about 1 (collapsed) up to min(n_clip, dim) (all directions used alike).
    Blind to what the directions mean, and to any label. Biased low by about exp(-dim / 8 n_clip) on n_clip clips.
    Source: Garrido et al. 2023 (arXiv 2210.02885), eq. 1-2; eps is theirs and adds at most dim * eps * ln(1/eps).
    Raises ValueError as `spectrum` does, or for a negative eps.
    """
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    sigma = _singular_values(z, center)
    return float(torch.exp(_entropy(sigma / sigma.sum() + eps)))


def effective_rank(z: Tensor | np.ndarray, center: bool = False) -> float:
    """Effective rank without the constant: exp of the entropy of the normalised singular values.

    z: (n_clip, dim) or (k,) singular values. Returns 1 up to the rank. Source: Roy & Vetterli 2007, eq. 4.
    """
    return rankme(z, eps=0.0, center=center)


def effective_rank_squared(z: Tensor | np.ndarray, center: bool = True) -> float:
    """Effective rank of the covariance: exp of the entropy of its eigenvalues, p = sigma^2 / sum(sigma^2).

    z: (n_clip, dim) or (k,) singular values (then pass center=False). Weighs strong directions more than `rankme`.
    """
    sigma = _singular_values(z, center)
    return effective_rank(sigma**2)


@dataclass(frozen=True)
class PowerLawDecay:
    """How the covariance eigenvalues fall: lambda_i ~ i^-alpha over ranks first..last, fitted in log-log."""

    alpha: float
    standard_error: float
    r_squared: float
    first: int
    last: int


def alpha_req(z: Tensor | np.ndarray, fit_range: tuple[int, int] = (11, 100), center: bool = True) -> PowerLawDecay:
    """Decay exponent of the eigenspectrum: least squares of log eigenvalue on log rank, weighted by 1 / rank.

    z: (n_clip, dim) or (k,) singular values (then pass center=False).
    fit_range: first and last rank used (from 1, inclusive), cut to the ranks that are there and above the noise of
    float64. Blind to everything outside the range. Raises ValueError where fewer than 20 ranks are left.
    Source: Agrawal et al. 2022 (alpha-ReQ).
    """
    sigma = _singular_values(z, center).numpy()
    usable = int((sigma > 1e-12 * sigma[0]).sum())
    first, last = fit_range[0], min(fit_range[1], usable)
    if last - first + 1 < 20:
        raise ValueError(f"alpha-ReQ needs at least 20 ranks, the range {fit_range} leaves {max(0, last - first + 1)}")
    rank = np.arange(first, last + 1)
    x, y, w = np.log(rank), 2 * np.log(sigma[first - 1 : last]), 1 / rank
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=np.sqrt(w), cov=True)
    residual = y - (slope * x + intercept)
    spread = y - np.average(y, weights=w)
    r_squared = 1 - (w * residual**2).sum() / (w * spread**2).sum()
    return PowerLawDecay(-float(slope), float(np.sqrt(covariance[0, 0])), float(r_squared), first, last)


def rankme_corrected(z: Tensor | np.ndarray, eps: float = DEFAULT_EPS, center: bool = False, seed: int = 0) -> float:
    """RankMe with its leading finite-sample bias removed by extrapolation in 1 / n_clip.

    ln RankMe falls short of its population value by about dim / (8 n_clip). Two random halves fall short by twice
    that, so 2 ln R(n) - mean ln R(n / 2) cancels the term.
    Raises ValueError below n_clip / dim = 4: the halves then have fewer than 2, where the expansion does not hold.
    """
    z = check_embeddings(z)
    n_clip, dim = z.shape
    if n_clip < 4 * dim:
        raise ValueError(f"{n_clip} clips for {dim} dimensions: the correction needs at least {4 * dim} clips")
    order = torch.randperm(n_clip, generator=torch.Generator().manual_seed(seed))
    halves = [rankme(z[part], eps, center) for part in order.chunk(2)]
    return float(rankme(z, eps, center) ** 2 / np.exp(np.mean(np.log(halves))))
