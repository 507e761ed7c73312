"""The synthetic tasks: the same clip every time, balanced labels, nothing shared between splits, order that matters."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchaudio
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rankscale.config import SAMPLE_RATE
from rankscale.sound.synthetic_tasks import (
    CANDIDATES,
    CLIP,
    FROZEN,
    HELD_OUT,
    SIZES,
    TASK_VERSION,
    frozen_tasks,
    level_db,
    synthetic_task,
    task_factors,
)

torch.set_num_threads(1)
every_task = pytest.mark.parametrize("name", CANDIDATES)


def waveforms(name, split, clips, block=64):
    return torch.cat(list(synthetic_task(name, clips).waveforms(split, block)))


@every_task
def test_clips_are_finite_sounding_and_in_range(name):
    wave = waveforms(name, "test", 12)
    assert wave.shape == (12, CLIP) and wave.dtype == torch.float32
    assert torch.isfinite(wave).all() and wave.abs().max() <= 1
    rms = wave.square().mean(1).sqrt()
    assert rms.min() > 1e-3, "a clip is silent"
    assert rms.max() / rms.min() > 1.5, "levels hardly vary"


@every_task
def test_a_clip_depends_on_nothing_but_its_number(name):
    whole = waveforms(name, "train", 9, block=9)
    assert torch.equal(whole, waveforms(name, "train", 9, block=4)), "changes with the block"
    assert torch.equal(whole[:5], waveforms(name, "train", 5)), "changes with the number of clips"
    assert not torch.equal(whole, waveforms(name, "test", 9)), "two splits hold the same clips"
    assert len(torch.unique(whole, dim=0)) == 9, "a clip occurs twice"


@every_task
def test_splits_have_the_stated_sizes_and_balanced_labels_within_the_vocabulary(name):
    task = synthetic_task(name)
    assert {part: len(split) for part, split in task.splits.items()} == SIZES
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    for split in task.splits.values():
        if task.prediction == "multilabel":
            assert split.labels.shape == (len(split), len(task.vocabulary)) and split.labels.dtype == bool
            rate = split.labels.mean(0)
            assert rate.min() > 0.7 * rate.mean() and split.labels.any(1).all()
        else:
            counts = np.bincount(split.labels, minlength=len(task.vocabulary))
            assert len(counts) == len(task.vocabulary) and counts.max() - counts.min() <= 1
    shorter = synthetic_task(name, 60).splits["test"].labels
    assert np.array_equal(shorter, task.splits["test"].labels[:60])


@every_task
def test_no_held_out_value_is_shared_between_splits(name):
    tables = {part: task_factors(name, part, 400) for part in SIZES}
    checked = [column for column in HELD_OUT if column in tables["train"] and column != "phones"]
    assert {"room", "noise"} < set(checked), "the task holds nothing out but its channel"
    for column in checked:
        values = {part: set(table[column].explode()) for part, table in tables.items()}
        assert len(values["train"]) > 10
        for one, other in [("train", "valid"), ("train", "test"), ("valid", "test")]:
            assert not values[one] & values[other], f"{column} is shared between {one} and {other}"


def test_speakers_say_new_words_in_every_split_but_for_six_known_ones():
    """A fault of v1: utterances are numbered apart, but six of them spell the same word in two splits.

    A word says nothing about its speaker, so labels do not leak; the next task version should draw without repeats.
    """
    tables = {part: task_factors("speaker", part) for part in SIZES}
    words = {part: set(table["phones"]) for part, table in tables.items()}
    assert words["train"] & words["test"] == {"tusosu", "sasuxo", "sosata"}
    assert words["train"] & words["valid"] == {"xisosi", "xutuxi"}
    assert words["valid"] & words["test"] == {"tituto"}
    assert tables["test"]["phones"].isin(words["train"]).mean() < 0.04


def test_factors_describe_the_clips_that_are_made():
    table = task_factors("noise_level", "test", 40)
    level = waveforms("noise_level", "test", 40).square().mean(1).sqrt().log10() * 20
    assert np.corrcoef(table["level_db"], level)[0, 1] > 0.95
    labels = synthetic_task("noise_level", 40).splits["test"].labels
    assert np.corrcoef(table["speech_snr_db"], labels)[0, 1] > 0.95


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="choose one of word"):
        synthetic_task("birdsong")


def decibels(name, split, clips):
    """Log-Mel of a split's first clips, (clip, 64, frame) in dB."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=512, hop_length=160, f_max=8000, n_mels=64)
    return 10 * mel(waveforms(name, split, clips)).clamp_min(1e-10).log10()


def test_vowel_order_needs_time():
    """Mean and spread of the log-Mel leave order at chance; averages over eighths of the clip do not."""
    task, accuracy = synthetic_task("vowel_order", 400), {}
    train, test = decibels("vowel_order", "train", 400), decibels("vowel_order", "test", 300)
    pools = {
        "mean and spread": lambda mel: torch.cat([mel.mean(2), mel.std(2)], 1),
        "eighths": lambda mel: torch.nn.functional.adaptive_avg_pool1d(mel, 8).flatten(1),
    }
    for pool, reduce in pools.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        probe.fit(reduce(train).numpy(), task.splits["train"].labels)
        accuracy[pool] = probe.score(reduce(test).numpy(), task.splits["test"].labels[:300])
    assert abs(accuracy["mean and spread"] - task.chance) < 0.09, accuracy  # four standard errors
    assert accuracy["eighths"] > task.chance + 0.2, accuracy


@pytest.fixture(scope="module")
def frozen_table():
    return pd.read_csv(Path(__file__).parents[1] / "data" / f"tasks-{TASK_VERSION}.csv").set_index("task")


def test_the_frozen_list_is_what_the_table_kept(frozen_table):
    assert list(frozen_table.index[frozen_table["kept"]]) == list(FROZEN)
    assert (frozen_table["kept"] == (frozen_table["supervised"] - frozen_table["logmel_meanstd"] >= 0.15)).all()
    assert [task.name for task in frozen_tasks(20)] == list(FROZEN)


@pytest.mark.parametrize("name", CANDIDATES)
def test_sounds_are_those_that_were_frozen(name, frozen_table):
    assert level_db(synthetic_task(name, 8)) == pytest.approx(frozen_table.loc[name, "level_db"], abs=0.01)
