"""Randomness of the synthesiser: everything random is a function of (corpus seed, clip, source) alone.

Factors and events are drawn on the CPU from Philox, a counter-based generator whose key is (seed, clip): no two
clips share a stream. Noise is an integer hash of the sample's number, so that every device makes the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

Quantile = Callable[[np.ndarray], np.ndarray]  # uniform numbers in (0, 1) -> values of a factor
Table = dict[str, np.ndarray]  # factor name -> one value per row


def draw_uniform(seed: int, clip: int, slot: int, count: int) -> np.ndarray:
    """`count` uniform numbers in (0, 1) for one slot (a source, or the scene) of clip `clip` of corpus `seed`.

    A longer draw begins with the shorter one. seed and clip are below 2**63.
    """
    bits = np.random.Philox(key=seed | clip << 64, counter=slot << 192)
    return np.random.Generator(bits).random(count).clip(1e-9)  # 0 would be infinite in some quantile functions


def draw_table(recipe: dict[str, Quantile], u: np.ndarray) -> Table:
    """One column per factor of `recipe` from the first columns of u (row, column)."""
    return {name: quantile(u[:, i]) for i, (name, quantile) in enumerate(recipe.items())}


# --- quantile functions -------------------------------------------------------------------------------------


def uniform(low: float, high: float) -> Quantile:
    """Evenly between low and high."""
    return lambda u: low + (high - low) * u


def normal(mean: float, sd: float, low: float = -math.inf, high: float = math.inf) -> Quantile:
    """Gaussian, cut at low and high."""
    return lambda u: np.clip(mean + sd * ndtri(u), low, high)


def lognormal(median: float, spread: float, low: float = 0.0, high: float = math.inf) -> Quantile:
    """exp of a Gaussian: `spread` is its standard deviation in nats; cut at low and high."""
    return lambda u: np.clip(median * np.exp(spread * ndtri(u)), low, high)


def pareto(low: float, exponent: float, high: float = math.inf) -> Quantile:
    """Power-law tail P(x > v) = (low / v) ** exponent, cut at high."""
    return lambda u: np.clip(low * (1 - u) ** (-1 / exponent), low, high)


def zipf(names: Sequence, exponent: float) -> Quantile:
    """The k-th of `names` with probability proportional to (k + 1) ** -exponent."""
    weight = np.arange(1, len(names) + 1) ** -float(exponent)
    edges, values = np.cumsum(weight / weight.sum())[:-1], np.array(names)
    return lambda u: values[np.searchsorted(edges, u, side="right")]


def sometimes(share: float, quantile: Quantile, otherwise: float) -> Quantile:
    """Drawn from `quantile` in a share of the cases, else the value `otherwise`."""
    return lambda u: np.where(u < share, quantile(np.minimum(u / share, 1 - 1e-9)), otherwise)


# --- noise --------------------------------------------------------------------------------------------------


def hash_bits(key: Tensor, count: int) -> Tensor:
    """32 pseudo-random bits as int32 (row, count): the n-th depends on the row's key and n only.

    key: int32 (row, 2), a multiplier and an offset. The mixing is Wellons' lowbias32.
    """
    x = torch.arange(count, dtype=torch.int32, device=key.device) * (key[:, :1] | 1) + key[:, 1:]
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def hash_uniform(key: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 (row, count)."""
    return ((hash_bits(key, count) >> 8) & 0xFFFFFF).float() * 2.0**-24


def hash_noise(key: Tensor, count: int) -> Tensor:
    """White noise of mean 0 and variance 1, float32 (row, count); triangular: the sum of two 16-bit uniforms."""
    x = hash_bits(key, count)
    return ((x & 0xFFFF) + ((x >> 16) & 0xFFFF)).float().mul_(math.sqrt(6) / 65535).sub_(math.sqrt(6))
