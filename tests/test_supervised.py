"""Supervised encoders: they learn what can be learned, are reproducible, and refuse clips of unequal length."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankscale.config import profile
from rankscale.corpus import MelBlocks
from rankscale.sound.synthetic_tasks import synthetic_task
from rankscale.supervised import Labelled, load_split, train_supervised

CONFIG = profile("smoke", clip_s=0.32, mask_group=1, steps=150, batch=16, lr=3e-3)


def ridges(n: int, seed: int) -> Labelled:
    """Two classes that no time average tells apart: a ridge that rises, and one that falls."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    band, frame = np.arange(64)[:, None], np.arange(32)[None, :]
    centre = rng.uniform(25, 40, n)
    clips = [
        -30 + 25 * np.exp(-((band - c - (2 * k - 1) * 0.8 * (frame - 16)) ** 2) / 20)
        for c, k in zip(centre, y, strict=True)
    ]
    return Labelled(
        torch.tensor(np.stack(clips), dtype=torch.float32) + torch.from_numpy(rng.normal(size=(n, 64, 32))).float(), y
    )


@pytest.fixture(scope="module")
def task():
    made = synthetic_task("vowel_order", 20)
    return replace(made, vocabulary=("falls", "rises"))


def train(task, **changes):
    parts = [ridges(160, seed) for seed in range(3)]
    return train_supervised(CONFIG.replace(**changes), task, *parts, progress=False)


def test_order_is_learned_and_the_result_reproducible(task):
    result = train(task)
    assert result["score"] > 0.8
    assert result["chance"] == 0.5
    assert train(task) == result


def test_clips_of_unequal_length_are_refused(task):
    with pytest.raises(ValueError, match="one length"):
        load_split(replace(task, clip_s=None), "train", MelBlocks(task, "train"))
