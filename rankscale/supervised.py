"""The same encoder trained on the labels themselves: what a task allows at this size, and whether it can be learned."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rankscale.config import RunConfig
from rankscale.corpus import MelBlocks
from rankscale.embed import pool_tokens
from rankscale.mae import Encoder, decay_groups
from rankscale.mel import mel_stats
from rankscale.pretrain import learning_rate
from rankscale.probe import main_metric, metrics
from rankscale.sound.tasks import Task

SHIFT_FRAMES = 8  # training clips are shifted by up to this many frames either way
GAIN_DB = 6.0  # and made louder or softer by up to this


class Classifier(nn.Module):
    """An encoder, its tokens pooled by mean and standard deviation, and one linear layer."""

    def __init__(self, encoder: Encoder, n_class: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(2 * encoder.spec.width, n_class)

    def forward(self, mel: Tensor) -> Tensor:  # (batch, band, frame) -> (batch, n_class)
        return self.head(pool_tokens(self.encoder.forward_mel(mel), "meanstd"))


@dataclass(frozen=True)
class Labelled:
    """One split in memory: mel (n, band, frame) float32, y (n,) int or (n, n_label) bool."""

    mel: Tensor
    y: np.ndarray


def load_split(task: Task, split: str, blocks: MelBlocks) -> Labelled:
    """Raises ValueError where the clips of a task differ in length."""
    if task.clip_s is None:
        raise ValueError(f"task {task.name}: supervised training needs clips of one length")
    return Labelled(torch.cat(list(blocks)), task.splits[split].labels)


def train_supervised(
    config: RunConfig, task: Task, train: Labelled, valid: Labelled, test: Labelled, progress: bool = True
) -> dict[str, float]:
    """Train `config.encoder` on a task end to end; keep the weights that did best on the validation split.

    Uses `steps`, `batch`, `lr`, `weight_decay` and `seed` of the configuration. Returns the metrics on the test split
    with `chance` and `score`, as `probe.probe_task` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Classifier(Encoder.from_config(config), len(task.vocabulary))
        model.encoder.set_input_stats(mel_stats([train.mel]))
        best = _optimise(config, model, task, train, valid, progress)
    model.load_state_dict(best)
    result = metrics(test.y, _predict(model, test.mel))
    return result | {"chance": task.chance, "score": (result[main_metric(task)] - task.chance) / (1 - task.chance)}


def _optimise(
    config: RunConfig, model: Classifier, task: Task, train: Labelled, valid: Labelled, progress: bool
) -> dict:
    optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=config.lr, fused=True)
    y = torch.from_numpy(train.y)
    best, best_score = None, -np.inf
    for step in tqdm(range(config.steps), task.name, disable=not progress):
        rows = torch.randint(len(y), (config.batch,))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        logits = model(_augment(train.mel[rows]))
        loss = _loss(logits, y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            score = metrics(valid.y, _predict(model, valid.mel))[main_metric(task)]
            if score > best_score:
                best, best_score = copy.deepcopy(model.state_dict()), score
    return best


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y) if y.ndim == 1 else F.binary_cross_entropy_with_logits(logits, y.float())


def _augment(mel: Tensor) -> Tensor:
    """A random shift in time (edge frames repeat, order stays) and a random gain for each clip."""
    shift = torch.randint(-SHIFT_FRAMES, SHIFT_FRAMES + 1, (len(mel), 1))
    frame = (torch.arange(mel.shape[2]) + shift).clamp(0, mel.shape[2] - 1)  # (batch, frame)
    shifted = mel.gather(2, frame[:, None, :].expand_as(mel))
    return shifted + GAIN_DB * (2 * torch.rand(len(mel), 1, 1) - 1)


@torch.inference_mode()
def _predict(model: Classifier, mel: Tensor) -> np.ndarray:
    model.eval()
    scores = torch.cat([model(block) for block in mel.split(256)]).sigmoid().numpy()
    model.train()
    return scores
