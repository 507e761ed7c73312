"""The training loop: it learns, is reproducible, survives kill -9, and ends in a status rather than a traceback."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from rankscale.config import RunConfig, profile
from rankscale.corpus import ClipStore, Corpus, ReadAhead, Source
from rankscale.distributed import Team
from rankscale.pretrain import history_steps, initial_model, learning_rate, pretrain

FRAMES = 32


def toy_config(**changes) -> RunConfig:
    return profile("smoke", clip_s=0.32, patch_frames=4, mask_group=1, steps=30, batch=8, **changes)


def toy_corpus(folder: Path, n: int = 160) -> Corpus:
    """Log-Mel clips with structure to learn: a few moving ridges over noise."""
    rng = np.random.default_rng(0)
    band, frame = np.arange(64)[:, None], np.arange(FRAMES)[None, :]
    clips = [
        -30 + 25 * np.exp(-((band - b - s * frame) ** 2) / 30) + rng.normal(size=(64, FRAMES))
        for b, s in zip(rng.uniform(5, 55, n), rng.uniform(-1, 1, n), strict=True)
    ]
    path = folder / "clips.npy"
    np.save(path, np.stack(clips).astype(np.float16))
    half = n // 2
    return Corpus(ClipStore([path]), np.arange(half), np.arange(half, n), (Source("toy", "0", half, n - half),))


@pytest.fixture
def corpus(tmp_path):
    return toy_corpus(tmp_path)


def run(config, corpus, folder, **changes):
    return pretrain(config, corpus, folder, device="cpu", progress=False, **changes)


def test_the_rank_can_be_moved_by_itself(corpus, tmp_path):
    ranks = []
    for weight in (-0.3, 0.0, 0.3):
        config = toy_config(log_det=weight).replace(steps=60)
        ranks.append(run(config, corpus, tmp_path / str(weight)).history[-1].rankme)
    assert ranks[0] < 0.9 * ranks[1] and ranks[2] > 1.1 * ranks[1]
    with pytest.raises(ValueError, match="log_det needs the covariance of the whole batch"):
        run(toy_config(log_det=0.1), corpus, tmp_path / "team", team=Team(0, 2))


def test_training_lowers_the_heldout_loss_and_fills_the_history(corpus, tmp_path):
    config = toy_config().replace(steps=150)
    result = run(config, corpus, tmp_path / "work")
    assert result.status == "ok"
    assert [p.step for p in result.history] == sorted(history_steps(config))
    assert result.history[-1].heldout_loss < 0.9 * result.history[0].heldout_loss
    assert result.history[0].train_loss is None
    assert all(p.rankme >= 1 and p.grad_norm > 0 for p in result.history[1:])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(corpus, tmp_path):
    first = run(toy_config(seed=3), corpus, tmp_path / "a")
    again = run(toy_config(seed=3), corpus, tmp_path / "b")
    other = run(toy_config(seed=4), corpus, tmp_path / "c")
    assert first.history == again.history
    assert first.history != other.history
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_the_untrained_encoder_does_not_depend_on_training_settings(corpus):
    first = initial_model(toy_config(), corpus).encoder.state_dict()
    other = initial_model(toy_config().replace(lr=1e-4, decoder_width=64, mask_ratio=0.5), corpus).encoder.state_dict()
    assert all(torch.equal(first[name], other[name]) for name in first)


def test_zero_steps_measure_the_untrained_encoder(corpus, tmp_path):
    result = run(toy_config().untrained(), corpus, tmp_path / "work")
    assert [p.step for p in result.history] == [0]
    assert result.status == "ok"


def test_schedule_warms_up_and_ends_at_zero():
    config = RunConfig(steps=1000, warmup=0.1, lr=1e-3)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (99, 100)
    assert rates[-1] < 1e-8
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))


def test_a_branch_is_constant_and_then_falls_to_zero():
    config = toy_config(schedule="branch", warmup_steps=5, decay=0.2).replace(steps=100)
    rates = [learning_rate(step, config) / config.lr for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rates[5:81]) == {1.0}
    assert rates[90] == pytest.approx(0.5) and rates[100] == 0


def test_branches_of_one_trunk_are_the_runs_they_would_be_alone(corpus, tmp_path):
    configs = [toy_config(schedule="branch", warmup_steps=5).replace(steps=steps) for steps in (25, 50, 100)]
    alone = [run(config, corpus, tmp_path / f"alone{config.steps}") for config in configs]
    trunks = tmp_path / "trunks"
    shared = [run(config, corpus, tmp_path / f"shared{config.steps}", trunks=trunks) for config in configs]
    assert sorted(int(path.stem) for path in trunks.rglob("*.pt")) == [20, 40, 80]
    for config, one, other in zip(configs, alone, shared, strict=True):
        assert [point.step for point in one.history] == sorted(history_steps(config))
        assert one.history == other.history
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_branch_really_starts_from_its_trunk(corpus, tmp_path, monkeypatch):
    config = toy_config(schedule="branch", warmup_steps=5).replace(steps=50)
    run(config, corpus, tmp_path / "a", trunks=tmp_path / "trunks")
    seen = []
    batch = Corpus.batch
    monkeypatch.setattr(Corpus, "batch", lambda self, step, *rest: (seen.append(step), batch(self, step, *rest))[1])
    run(config.replace(steps=100), corpus, tmp_path / "b", trunks=tmp_path / "trunks")
    assert min(seen) == 40
    seen.clear()
    run(config.replace(steps=30), corpus, tmp_path / "c", trunks=tmp_path / "trunks")
    assert min(seen) == 0  # the trunk at 40 is too far along
    run(config.replace(steps=100, lr=1e-4), corpus, tmp_path / "d", trunks=tmp_path / "trunks")
    assert seen.count(0) == 2  # another rate is another trunk
    seen.clear()
    run(config.replace(pool="meanstd"), corpus, tmp_path / "e", trunks=tmp_path / "trunks")
    assert min(seen) == 40  # how embeddings are taken does not change how they are trained


@pytest.mark.parametrize("lr", [1e4, 1e18])
def test_divergence_is_a_status(corpus, tmp_path, lr):
    result = run(toy_config(lr=lr, warmup=0.0, grad_clip=1e9, weight_decay=0.0), corpus, tmp_path / "work")
    assert result.status in ("diverged", "collapsed")
    assert "step" in result.reason


def test_collapse_is_a_status(tmp_path):
    """Clips that are all alike leave an encoder one direction."""
    path = tmp_path / "same.npy"
    clip = np.random.default_rng(0).normal(size=(1, 64, FRAMES)) * 5 - 30
    np.save(path, np.repeat(clip, 100, axis=0).astype(np.float16))
    corpus = Corpus(ClipStore([path]), np.arange(60), np.arange(60, 100), (Source("toy", "0", 60, 40),))
    result = run(toy_config(), corpus, tmp_path / "work")
    assert result.status == "collapsed"
    assert "RankMe is 1.0" in result.reason


def test_a_checkpoint_of_another_run_is_refused(corpus, tmp_path):
    run(toy_config(), corpus, tmp_path / "work")
    with pytest.raises(ValueError, match="belongs to another configuration"):
        run(toy_config(seed=9), corpus, tmp_path / "work")


def test_a_damaged_checkpoint_is_named(corpus, tmp_path):
    run(toy_config(), corpus, tmp_path / "work")
    file = tmp_path / "work" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read"):
        run(toy_config(), corpus, tmp_path / "work")


def test_epochs_visit_every_clip_once(corpus):
    drawn = [tuple(clip.flatten()[:8].tolist()) for step in range(10) for clip in corpus.batch(step, 8, seed=1)]
    assert len(set(drawn)) == 80
    assert torch.equal(corpus.batch(3, 8, 1), corpus.batch(3, 8, 1))
    assert not torch.equal(corpus.batch(3, 8, 1), corpus.batch(13, 8, 1))


def test_batches_that_are_read_ahead_are_the_same_ones(corpus):
    ahead = ReadAhead(corpus)
    for step in (0, 1, 2, 7, 8):  # a run that resumes begins somewhere
        assert torch.equal(ahead.batch(step, 8, 1, slice(2, 5), "cpu"), corpus.batch(step, 8, 1)[2:5])
    assert not torch.equal(ahead.batch(9, 8, 2, slice(None), "cpu"), corpus.batch(9, 8, 1))


def test_compiled_training_is_the_same_run(corpus, tmp_path, monkeypatch):
    """Traced as it is for a compiler, but run by torch: the machine may have no compiler."""
    traced = []
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: traced.append(m) or compile_model(m, backend="eager"))
    config = toy_config().replace(steps=12)
    plain, compiled = run(config, corpus, tmp_path / "a"), run(config, corpus, tmp_path / "b", compiled=True)
    assert len(traced) == 1
    assert [p.heldout_loss for p in compiled.history] == pytest.approx([p.heldout_loss for p in plain.history], 1e-5)


TRAIN = """
import sys, json
from dataclasses import asdict
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_pretrain import toy_config, toy_corpus, run
folder = Path({folder!r})
config = toy_config().replace(steps=120, decoder_width=128)
result = run(config, toy_corpus(folder), folder / "work", save_every_s=0.02)
(folder / "result.json").write_text(json.dumps([asdict(p) for p in result.history]))
"""


def start_training(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    script = TRAIN.format(tests=str(Path(__file__).parent), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill_when(process: subprocess.Popen, ready) -> bool:
    """kill -9 the process as soon as `ready()`; False if it finished first."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.0005)
    return False


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_like_an_undisturbed_one(tmp_path):
    assert start_training(tmp_path / "calm").wait(300) == 0

    work = tmp_path / "killed" / "work"
    checkpoint = work / "checkpoint.pt"

    def saved_again(delay):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        until = []

        def ready():
            if not until and checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                until.append(time.monotonic() + delay)
            return bool(until) and time.monotonic() >= until[0]

        return ready

    kills = [
        kill_when(start_training(tmp_path / "killed"), saved_again(random.uniform(0, 0.2))),
        kill_when(start_training(tmp_path / "killed"), lambda: any(work.glob("*.tmp")) and checkpoint.exists()),
        kill_when(start_training(tmp_path / "killed"), saved_again(random.uniform(0, 0.2))),
    ]
    assert all(kills), "the run finished before it could be killed: make it longer"
    assert start_training(tmp_path / "killed").wait(300) == 0
    assert not list(work.glob("*.tmp"))
    calm, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("calm", "killed"))
    assert killed == calm


def test_history_points_are_plain_data(corpus, tmp_path):
    result = run(toy_config(), corpus, tmp_path / "work")
    assert json.loads(json.dumps([asdict(p) for p in result.history]))
