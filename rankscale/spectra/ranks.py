"""Numbers that summarise a spectrum. Each takes embeddings, an accumulator of them, or their singular values.

Notation: sigma_1 >= sigma_2 >= ... are the singular values, lambda_i = sigma_i^2 the eigenvalues of the scatter matrix.
None of these numbers depends on the scale of the embeddings or on a rotation of them, and none sees what a
direction means: they are blind to every label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankscale.spectra.accumulate import SpectrumAccumulator
from rankscale.spectra.decompose import spectrum

DEFAULT_EPS = 1e-7  # the paper's constant for float32 embeddings

Embeddings = Tensor | np.ndarray | SpectrumAccumulator


def singular_values(z: Embeddings, center: bool | None = False, usual: bool = False) -> Tensor:
    """Singular values of whatever was given, largest first: (k,) float64.

    z: (n_clip, dim) embeddings, an accumulator, or (k,) singular values, which are taken as they are.
    center: None stands for `usual` where rows are given, and for nothing where a spectrum is.
    Raises ValueError as `spectrum` does; for a spectrum that is negative, not finite or all zero, and for one
    that should be centred after the fact.
    """
    if isinstance(z, SpectrumAccumulator):
        return spectrum(z, usual if center is None else center)
    values = torch.as_tensor(z) if not isinstance(z, np.memmap) else z
    if values.ndim != 1:
        return spectrum(values, usual if center is None else center)
    if center:
        raise ValueError(
            "a spectrum cannot be centred after the fact: pass the embeddings, or spectrum(z, center=True)"
        )
    values = torch.as_tensor(values).to(torch.float64)
    if not torch.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError("a spectrum must hold finite singular values, none negative and not all zero")
    return values.sort(descending=True).values


def _effective_rank(shares: Tensor) -> float:
    """exp of the Shannon entropy in nats; 0 ln 0 counts as 0."""
    return float(torch.special.entr(shares).sum().exp())


def rankme(z: Embeddings, eps: float = DEFAULT_EPS, center: bool = False) -> float:
    """Effective rank as in RankMe: exp(-sum p ln p), p = sigma / sum(sigma) + eps.

    Returns about 1 (collapsed) up to min(n_clip, dim) (all directions used alike).
    Blind to what the directions mean. Moved by an offset (unless centred), by any stretch of the axes, by noise, and
    biased low by about exp(-dim / 8 n_clip) on n_clip clips (`rankme_corrected`).
    Source: Garrido et al. 2023 (arXiv 2210.02885), eq. 1-2; eps is theirs and adds at most dim * eps * ln(1/eps).
    Raises ValueError as `singular_values` does, or for a negative eps.
    """
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    sigma = singular_values(z, center)
    return _effective_rank(sigma / sigma.sum() + eps)


def effective_rank(z: Embeddings, center: bool = False) -> float:
    """Effective rank without the constant: exp of the entropy of sigma / sum(sigma).

    Returns 1 up to the rank. Blind and biased as `rankme` is. Source: Roy & Vetterli 2007, eq. 4.
    """
    return rankme(z, eps=0.0, center=center)


def effective_rank_squared(z: Embeddings, center: bool | None = None) -> float:
    """Effective rank of the covariance: exp of the entropy of lambda / sum(lambda).

    Returns 1 up to the rank, never more than `effective_rank` of the same spectrum: strong directions weigh more.
    Blind to weak directions that many probes can still use. Centred by default, as a covariance is.
    Source: the von Neumann entropy of the normalised covariance; in audio, Skean et al. 2025 use it.
    """
    energy = singular_values(z, center, usual=True) ** 2
    return _effective_rank(energy / energy.sum())


def stable_rank(z: Embeddings, center: bool = False) -> float:
    """sum(lambda) / lambda_1: the squared Frobenius norm over the squared spectral norm.

    Returns 1 up to the rank. Blind to everything but the largest direction and the total. Source: Rudelson &
    Vershynin 2007.
    """
    energy = singular_values(z, center) ** 2
    return float(energy.sum() / energy[0])


def nesum(z: Embeddings, center: bool | None = None) -> float:
    """Normalised eigenvalue sum: sum(lambda) / lambda_1 of the covariance.

    The stable rank of centred embeddings, under another name; 1 up to the rank. Source: He & Ozay 2022, def. 4.1.
    """
    return stable_rank(singular_values(z, center, usual=True))


def participation_ratio(z: Embeddings, center: bool | None = None) -> float:
    """sum(lambda)^2 / sum(lambda^2) of the covariance: how many eigenvalues take part.

    Returns 1 up to the rank: exp of the Renyi entropy of order two, so at most `effective_rank_squared`. Even
    blinder to weak directions. Centred by default. Source: Gao et al. 2017 (neural dimensionality).
    """
    energy = singular_values(z, center, usual=True) ** 2
    return float(energy.sum() ** 2 / (energy**2).sum())


def condition_number(z: Embeddings, center: bool = False) -> float:
    """sigma_1 / sigma_last over the min(n_clip, dim) singular values: from 1 (all alike) to infinity (rank-deficient).

    Blind to everything between the two ends; the smallest value is often noise. Tsitsulin et al. 2023 (arXiv
    2305.16562) use its inverse as an embedding's quality.
    """
    sigma = singular_values(z, center)
    return float(sigma[0] / sigma[-1])


@dataclass(frozen=True)
class PowerLawDecay:
    """How the covariance eigenvalues fall: lambda_i ~ i^-alpha over ranks first..last, fitted in log-log."""

    alpha: float
    standard_error: float
    r_squared: float
    first: int
    last: int


def alpha_req(z: Embeddings, fit_range: tuple[int, int] = (11, 100), center: bool | None = None) -> PowerLawDecay:
    """Decay exponent of the eigenspectrum: least squares of ln lambda_i on ln i, weighted by 1 / i.

    fit_range: first and last rank used (from 1, inclusive), cut to the ranks that are there and above 1e-6 of the
    largest singular value. The standard error takes the residuals as independent, which neighbouring eigenvalues are
    not: read it as a lower bound. Centred by default. Blind to everything outside the range, to the scale of the
    spectrum and to the dimension. Its authors look for an alpha near 1, not for the smallest.
    Raises ValueError where fewer than 20 ranks are left. Source: Agrawal et al. 2022 (alpha-ReQ).
    """
    sigma = singular_values(z, center, usual=True).numpy()
    first, last = fit_range[0], min(fit_range[1], _usable(sigma))
    if first < 1:
        raise ValueError(f"ranks are counted from 1: the range {fit_range} starts before")
    if last - first + 1 < 20:
        raise ValueError(f"alpha-ReQ needs at least 20 ranks, the range {fit_range} leaves {max(0, last - first + 1)}")
    rank = np.arange(first, last + 1)
    x, y, w = np.log(rank), 2 * np.log(sigma[first - 1 : last]), 1 / rank
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=np.sqrt(w), cov=True)
    residual = y - (slope * x + intercept)
    spread = y - np.average(y, weights=w)
    r_squared = 1 - (w * residual**2).sum() / (w * spread**2).sum()
    return PowerLawDecay(-float(slope), float(np.sqrt(covariance[0, 0])), float(r_squared), first, last)


def _usable(sigma: np.ndarray) -> int:
    """How many singular values stand above the rounding of float32, in which most embeddings come.

    The empty direction that a layer norm leaves, 1e-8 of the largest, turned an alpha of 3.4 into one of 7.3.
    """
    return int((sigma > 1e-6 * sigma[0]).sum())


@dataclass(frozen=True)
class PowerLawTail:
    """The density of the largest eigenvalues: p(lambda) ~ lambda^-exponent from `smallest` up."""

    exponent: float
    standard_error: float
    smallest: float  # eigenvalue at which the tail begins, in units of the largest
    count: int  # eigenvalues in the tail
    distance: float  # Kolmogorov-Smirnov distance between tail and fit


def power_law_tail(z: Embeddings, center: bool | None = None, least: int = 10) -> PowerLawTail:
    """Maximum-likelihood power law of the *density* of the eigenvalues: 1 + n / sum ln(lambda_i / lambda_min).

    The tail begins at the eigenvalue, with at least `least` above or at it, whose fit has the smallest
    Kolmogorov-Smirnov distance. If lambda_i = i^-alpha, the density falls with exponent 1 + 1 / alpha: this is
    alpha-ReQ turned round, over a range that the data choose. Above 1, and less for heavier tails. Centred by default.
    Blind to all eigenvalues under the tail. Raises ValueError for fewer than 20 eigenvalues above rounding.
    Source: Clauset, Shalizi & Newman 2009, eq. 3.1-3.9; for spectra of networks, Martin & Mahoney 2021.
    """
    sigma = singular_values(z, center, usual=True).numpy()
    energy = (sigma[: _usable(sigma)] / sigma[0]) ** 2
    if len(energy) < 20:
        raise ValueError(f"a tail needs at least 20 eigenvalues above rounding, got {len(energy)}")
    logs = np.log(energy)
    best = None
    for count in range(least, len(logs) + 1):
        above = logs[:count] - logs[count - 1]  # largest first, in units of the tail's beginning
        if above[0] == 0:
            continue  # all alike: no power law is that steep
        rate = count / above.sum()  # exponent - 1
        model = np.exp(-rate * above)  # share of the tail at or above each eigenvalue
        seen = np.arange(count + 1) / count
        distance = max(np.abs(seen[1:] - model).max(), np.abs(seen[:-1] - model).max())
        if best is None or distance < best.distance:
            error, smallest = float(rate / np.sqrt(count)), float(energy[count - 1])
            best = PowerLawTail(1 + float(rate), error, smallest, count, float(distance))
    if best is None:
        raise ValueError("all eigenvalues are equal: there is no tail")
    return best
