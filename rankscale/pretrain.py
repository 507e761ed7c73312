"""The training loop: configuration and corpus in; trained encoder and history out, or the status that says why not.

Everything random is a pure function of the seed and the step, so that a run which was killed goes on from its last
checkpoint and ends where an undisturbed one does.

Processes that `torchrun` starts can share a run, see `distributed`: each computes a part of every batch, the first one
measures and writes.

With schedule "branch" the rate is constant until a short decay at the end, so that runs of different lengths are the
same until then (Hu et al. 2024; Haegele et al. 2024). Each leaves the state before its decay in a folder of trunks, and
a longer run goes on from there: many points along training for little more than the longest one.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rankscale.budget import budget
from rankscale.config import RunConfig
from rankscale.corpus import Batches, Corpus
from rankscale.distributed import ALONE, Team
from rankscale.embed import embed_all, encoder_embedding
from rankscale.mae import MAE, decay_groups, log_det
from rankscale.spectra import rankme, spectrum
from rankscale.storage import write_atomically

COLLAPSED_RANKME = 1.5  # raw RankMe below this: nearly one direction is left
EXPLODED_LOSS = 10.0  # normalised patches: predicting nothing costs 1
HISTORY_CLIPS = 3072  # held-out clips for the RankMe of a history point (the record's own uses all)
LOSS_CLIPS = 512  # held-out clips for the loss of a history point
SETTLING_STEPS = 10  # not timed: kernels are chosen and compiled in the first steps that a process takes


@dataclass(frozen=True)
class HistoryPoint:
    """The run at one step. `train_loss` and `grad_norm` are means since the last point, None before step 1."""

    step: int
    lr: float
    train_loss: float | None
    heldout_loss: float
    grad_norm: float | None  # before clipping
    rankme: float
    rank_clips: int
    singular_values: list[float] | None = None  # of the embeddings that RankMe was taken of, raw; None in old records


@dataclass
class TrainState:
    """All that a checkpoint holds besides weights: where the run is and what it has seen."""

    step: int = 0
    history: list[HistoryPoint] = field(default_factory=list)
    loss_sum: float = 0.0  # since the last history point
    grad_sum: float = 0.0
    since: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Pretrained:
    """How a run ended. status: "ok", "diverged" (loss not finite or exploding) or "collapsed" (RankMe near 1).

    flop_per_s: of the training steps that were timed (by `budget`'s counting rule, all processes together), without
    the measurements between them; None where too few steps were taken to tell.
    """

    model: MAE
    history: tuple[HistoryPoint, ...]
    status: str
    reason: str | None
    wall_s: float
    flop_per_s: float | None = None


@dataclass
class Learner:
    """A model that is being trained, and what trains it.

    forward: the same model as training calls it: as it is, compiled, or sharing its gradients with a team.
    """

    model: MAE
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    team: Team = ALONE
    step_s: list[float] = field(default_factory=list)  # wall time of each step that this process took

    @classmethod
    def of(cls, model: MAE, optimizer: torch.optim.Optimizer, team: Team = ALONE, compiled: bool = False) -> Learner:
        """compiled: through torch.compile, which is faster after a wait, and rounds a little differently."""
        shared = team.share(model)
        return cls(model, torch.compile(shared) if compiled else shared, optimizer, team)

    def flop_per_s(self, config: RunConfig) -> float | None:
        timed = self.step_s[SETTLING_STEPS:]
        return len(timed) * budget(config).train_flop / config.steps / sum(timed) if timed else None


class Diverged(Exception):
    """The loss left the range in which training means anything."""


def initial_model(config: RunConfig, corpus: Corpus) -> MAE:
    """The model before step 0: weights from the seed, input statistics from the corpus."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MAE.from_config(config)
    model.encoder.set_input_stats(corpus.input_stats())
    return model


def pick_device(device: str = "auto") -> str:
    """ "auto" is a CUDA device where there is one, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def trunk_end(config: RunConfig) -> int:
    """The step at which the decay of a "branch" run begins."""
    return config.steps - max(1, round(config.decay * config.steps))


def trunk_hash(config: RunConfig) -> str:
    """What "branch" runs have in common that differ only in number of steps, share of decay, and how z is taken."""
    free = ("decay", "checkpoints", "pool", "layer", "rank_on", "task_clips", "attempt")
    return config.replace(steps=1, **{name: RunConfig.model_fields[name].default for name in free}).hash


def learning_rate(step: int, config: RunConfig) -> float:
    """The rate of a step.

    "cosine": linear warm-up over the first share of the steps, then half a cosine to zero at the last. "branch":
    linear warm-up over `warmup_steps`, constant, and linear to zero over the last share.
    """
    if config.schedule == "branch":
        begin = trunk_end(config)
        falling = 1.0 if step < begin else (config.steps - step) / (config.steps - begin)
        return config.lr * min(1.0, (step + 1) / config.warmup_steps) * falling
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def history_steps(config: RunConfig) -> set[int]:
    """Step 0, the last step, and log-spaced steps between them: `checkpoints` + 1 of them, or fewer in a short run.

    Of a "branch" run: powers of two from 16 until it decays, and its end. Those of its trunk are the same for all.
    """
    if config.schedule == "branch":
        return {0, config.steps} | {2**k for k in range(4, 40) if 2**k < trunk_end(config)}
    spaced = np.geomspace(max(1, config.steps / 100), max(1, config.steps), config.checkpoints)
    return {0, config.steps} | {round(step) for step in spaced if step <= config.steps}


def mask_generator(seed: int, step: int) -> torch.Generator:
    """The masks of a step: a CPU generator that depends on nothing but the seed and the step."""
    state = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def pretrain(
    config: RunConfig,
    corpus: Corpus,
    workdir: Path,
    device: str = "auto",
    save_every_s: float = 60.0,
    progress: bool = True,
    trunks: Path | None = None,
    team: Team = ALONE,
    compiled: bool = False,
) -> Pretrained:
    """Train the masked autoencoder of `config` on `corpus`; go on from `workdir`/checkpoint.pt if it is there.

    workdir: where the checkpoint lives; a killed run loses at most `save_every_s` seconds. trunks: where runs with
    schedule "branch" leave and look for their common beginning; the result is the same without it. team: processes
    that share the run; each calls this function, with folders that all of them see. compiled: see `Learner.of`.
    Divergence and collapse are results, not errors. Raises ValueError for a checkpoint of another configuration,
    where a batch has fewer clips than the team has processes, and for `log_det` in a team.
    """
    team.part(config.batch)  # a batch that cannot be shared is refused before anything is done
    if config.log_det and team.size > 1:
        raise ValueError("log_det needs the covariance of the whole batch: train this run in one process")
    device = pick_device(device)
    model = initial_model(config, corpus).to(device)
    optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, 0.95), fused=True)
    checkpoint = workdir / "checkpoint.pt"
    trunk = _Trunk(trunks / trunk_hash(config), config) if trunks and config.schedule == "branch" else None
    start = team.on_leader(lambda: _find_start(checkpoint, trunk))
    key = config.canonical() if start == checkpoint or not trunk else trunk.key
    state = _resume(start, key, model, optimizer, device) if start else TrainState()
    learner = Learner.of(model, optimizer, team, compiled)
    probe = _HistoryProbe(config, corpus, device)
    status, reason = "ok", None
    try:
        _train(config, corpus, learner, state, probe, checkpoint, trunk, save_every_s, progress and team.leads)
    except Diverged as error:
        status, reason = "diverged", str(error)
    if remarks := corpus.remarks():
        logging.getLogger(__name__).warning(remarks)
    if status == "ok" and state.history[-1].rankme < COLLAPSED_RANKME:
        status, reason = "collapsed", f"RankMe is {state.history[-1].rankme:.3f} after {state.step} steps"
    return Pretrained(model, tuple(state.history), status, reason, state.wall_s, learner.flop_per_s(config))


@dataclass(frozen=True)
class _Trunk:
    """The common beginning of "branch" runs: one file for each step at which a run left it."""

    folder: Path
    config: RunConfig

    @property
    def key(self) -> str:
        return self.folder.name

    def end(self) -> Path:
        return self.folder / f"{trunk_end(self.config)}.pt"

    def nearest(self) -> Path | None:
        """The latest state that is not beyond the start of this run's decay."""
        found = [path for path in self.folder.glob("*.pt") if int(path.stem) <= trunk_end(self.config)]
        return max(found, key=lambda path: int(path.stem), default=None)


def _find_start(checkpoint: Path, trunk: _Trunk | None) -> Path | None:
    """The file to go on from: the run's own checkpoint, else the nearest state of its trunk, if any."""
    for leftover in checkpoint.parent.glob(f"{checkpoint.name}.*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    if checkpoint.exists():
        return checkpoint
    return trunk.nearest() if trunk else None


def _train(config, corpus, learner, state, probe, checkpoint, trunk, save_every_s, progress) -> None:
    points = history_steps(config)
    batches = corpus.reader(next(learner.model.parameters()).is_cuda)
    started = saved = time.monotonic()
    wall_before = state.wall_s
    with tqdm(total=config.steps, initial=state.step, desc=config.encoder, unit="step", disable=not progress) as bar:
        while True:
            if state.step in points and (not state.history or state.history[-1].step < state.step):
                _note(state, probe, learner, config)
            state.wall_s = wall_before + time.monotonic() - started
            done = state.step == config.steps
            if trunk and state.step == trunk_end(config) and not trunk.end().exists():
                _save(trunk.end(), trunk.key, learner, state)
            if done or time.monotonic() - saved >= save_every_s:
                _save(checkpoint, config.canonical(), learner, state)
                saved = time.monotonic()
            if done:
                return
            began = time.monotonic()
            train_step(config, batches, learner, state)
            learner.step_s.append(time.monotonic() - began)
            bar.update()
            if bar.n % 20 == 0:
                _show(bar, config, state)


def train_step(config: RunConfig, corpus: Batches, learner: Learner, state: TrainState) -> None:
    """One batch: masks, loss, gradient, clip, update. Raises Diverged on a loss that means nothing any more."""
    model, optimizer, team = learner.model, learner.optimizer, learner.team
    device = next(model.parameters()).device
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    part = team.part(config.batch)
    mel = corpus.batch(state.step, config.batch, config.seed, part, device)
    noise = model.mask_noise(config.batch, mask_generator(config.seed, state.step))[part]  # of the whole batch
    with _autocast(config, device):
        output = learner.forward(mel, noise=noise)
        loss = team.weigh(output.loss, config.batch)
    optimizer.zero_grad(set_to_none=True)
    (loss - config.log_det * log_det(output.pooled) if config.log_det else loss).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    value, norm = float(team.mean(loss)), float(norm)
    if not (math.isfinite(value) and math.isfinite(norm)) or value > EXPLODED_LOSS:
        raise Diverged(
            f"loss {value:.4g}, gradient norm {norm:.4g} at step {state.step}; try a lower lr than {config.lr}"
        )
    optimizer.step()
    state.step += 1
    state.loss_sum += value
    state.grad_sum += norm
    state.since += 1


def _autocast(config: RunConfig, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


class _HistoryProbe:
    """Held-out loss and RankMe on the same clips and masks at every point of the history.

    RankMe is that of the last layer's time-mean, however the run's own embeddings are taken.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, device: str):
        self.corpus, self.device = corpus, device
        rows = np.random.default_rng(3).permutation(corpus.heldout_rows)
        self.rank_rows, self.loss_rows = rows[:HISTORY_CLIPS], rows[:LOSS_CLIPS]
        self.eps = config.rank_eps

    @torch.inference_mode()
    def heldout_loss(self, model: MAE) -> float:
        generator = mask_generator(0, 0)
        total = 0.0
        for mel in self.corpus.store.blocks(self.loss_rows):
            total += float(model(mel.to(self.device), generator=generator).loss) * len(mel)
        return total / len(self.loss_rows)

    def spectrum(self, model: MAE) -> Tensor | None:
        """Singular values of the embeddings, not centred; None where they are not finite."""
        z = embed_all(encoder_embedding(model.encoder), self.corpus.store.blocks(self.rank_rows))
        return spectrum(z) if np.isfinite(z).all() else None


def _note(state: TrainState, probe: _HistoryProbe, learner: Learner, config: RunConfig) -> None:
    """Add a point to the history, measured by the leader; a model that gives no finite embeddings has diverged."""
    point = learner.team.on_leader(lambda: _measure_point(state, probe, learner.model, config))
    state.history.append(point)
    state.loss_sum = state.grad_sum = 0.0
    state.since = 0


def _measure_point(state: TrainState, probe: _HistoryProbe, model: MAE, config: RunConfig) -> HistoryPoint:
    model.eval()
    loss, sigma = probe.heldout_loss(model), probe.spectrum(model)
    model.train()
    if not math.isfinite(loss) or sigma is None:
        embeddings = "" if sigma is not None else ", embeddings not finite"
        raise Diverged(f"held-out loss {loss:.4g}{embeddings} at step {state.step}; try a lower lr than {config.lr}")
    mean = (lambda total: total / state.since) if state.since else (lambda total: None)
    lr = learning_rate(min(state.step, max(0, config.steps - 1)), config) if config.steps else 0.0
    return HistoryPoint(
        step=state.step,
        lr=lr,
        train_loss=mean(state.loss_sum),
        heldout_loss=loss,
        grad_norm=mean(state.grad_sum),
        rankme=rankme(sigma, probe.eps),
        rank_clips=len(probe.rank_rows),
        singular_values=sigma.float().tolist(),  # of float32 embeddings: more digits would say nothing
    )


def _show(bar: tqdm, config: RunConfig, state: TrainState) -> None:
    rate = bar.format_dict["rate"]
    shown = {"loss": f"{state.loss_sum / max(1, state.since):.3f}"}
    if state.history:
        shown["RankMe"] = f"{state.history[-1].rankme:.1f}"
    if rate:
        shown["audio h/s"] = f"{rate * config.batch * config.clip_s / 3600:.2f}"
    bar.set_postfix(shown, refresh=False)


def _save(path: Path, key: str, learner: Learner, state: TrainState) -> None:
    """key: what the state belongs to, a run's configuration or a trunk's hash. Only the leader of a team writes."""
    if not learner.team.leads:
        return
    content = {
        "config": key,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "state": asdict(state),
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def _resume(path: Path, key: str, model: MAE, optimizer: torch.optim.Optimizer, device: str) -> TrainState:
    content = _read_checkpoint(path, device)
    if content["config"] != key:
        raise ValueError(f"{path} belongs to another configuration; delete it or choose another folder")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    state = TrainState(**content["state"])
    state.history = [HistoryPoint(**point) for point in content["state"]["history"]]
    return state


def _read_checkpoint(path: Path, device: str) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error}); delete it to start again") from error
