"""Clips to embeddings: any encoder, or plain log-Mel statistics, as one (n_clip, dim) matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from rankscale.mae import Encoder

Embed = Callable[[Tensor], Tensor]  # log-Mel (batch, band, frame) in dB -> (batch, dim)

BLOCK = 64  # clips embedded at once: larger blocks leave the cache and are slower on a CPU


def pool_tokens(tokens: Tensor, pool: str = "mean") -> Tensor:
    """Summarise over time: (batch, time, feature) -> (batch, feature), or (batch, 2 * feature) for "meanstd".

    The standard deviation is the population one, so that a single token gives 0 and not NaN.
    """
    if pool not in ("mean", "meanstd"):
        raise ValueError(f"pool {pool!r}: choose mean or meanstd")
    mean = tokens.mean(dim=1)
    return mean if pool == "mean" else torch.cat([mean, tokens.std(dim=1, correction=0)], dim=1)


def encoder_embedding(encoder: Encoder, pool: str = "mean") -> Embed:
    """The encoder's last layer, pooled over time; evaluation mode, no gradients."""
    encoder.eval()
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def embed(mel: Tensor) -> Tensor:
        return pool_tokens(encoder.forward_mel(mel.to(device)), pool).float().cpu()

    return embed


def logmel_embedding(pool: str = "mean") -> Embed:
    """The floor without a model: the log-Mel spectrogram itself, pooled over time."""
    return lambda mel: pool_tokens(mel.transpose(1, 2), pool)


def embed_all(embed: Embed, mels: Iterable[Tensor]) -> np.ndarray:
    """Embed blocks of log-Mel clips, each (<= block, band, frame), into one float32 matrix (n_clip, dim)."""
    blocks = [embed(mel).numpy() for mel in mels]
    if not blocks:
        raise ValueError("no clips to embed")
    return np.concatenate(blocks)
