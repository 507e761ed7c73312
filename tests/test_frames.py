"""Frames and long audio: known ranks and shares, a task with known times, a probe that can find them, any length."""

import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert

from rankscale import charts, frame_charts, frames, spectra
from rankscale.hear_eval import Embedded, check_task
from rankscale.sound import event_task
from rankscale.sound.event_task import onset_task
from rankscale.sound.tasks import TRAIN_VALID_TEST, Event, Split, Task

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


# --- tokens -----------------------------------------------------------------------------------------------


def test_held_out_clips_are_the_same_however_many_and_lie_behind_the_training_clips():
    mels = frames.heldout_mels(3, 0.32)
    assert mels.shape == (3, 64, 32)
    assert torch.equal(frames.heldout_mels(2, 0.32), mels[:2])
    wave = frames.synthesize([frames.HELDOUT_START + 2], clip_s=0.32).waveform
    assert torch.allclose(frames.LogMel()(wave)[..., :32], mels[2:], atol=1e-3)


# --- ranks and shares -------------------------------------------------------------------------------------


def test_frames_that_never_change_are_their_clip():
    found = frames.frame_ranks(draw(40, 1, 8).expand(40, 5, 8))
    assert found.within_share == pytest.approx(0, abs=1e-12)
    assert found.frames == pytest.approx(found.clips) == pytest.approx(found.one_frame)


def test_what_only_place_decides_is_within_clips_and_the_same_in_all():
    found = frames.frame_ranks(draw(1, 12, 6).expand(9, 12, 6) + 1e-6 * draw(9, 1, 6))
    assert found.within_share == pytest.approx(1)
    assert found.position_share == pytest.approx(1)


def test_shares_of_known_variances_are_found():
    clips, places, rest = 2 * draw(400, 1, 6), draw(1, 50, 6), draw(400, 50, 6)
    places = (places - places.mean(1, keepdim=True)) / places.std(1, keepdim=True, correction=0)
    found = frames.frame_ranks(clips + places + rest)
    assert found.within_share == pytest.approx(2 / 6, abs=0.02)
    assert found.position_share == pytest.approx(1 / 6, abs=0.02)


def test_covariances_within_and_between_add_up_to_that_of_frames():
    """The law of total covariance, through the singular values of its three parts."""
    tokens = draw(30, 7, 4) @ draw(4, 4) + draw(30, 1, 4)
    mean = tokens.mean(1)
    parts = (tokens - mean[:, None]).flatten(0, 1), (mean - mean.mean(0)).repeat_interleave(7, 0)
    whole = tokens.flatten(0, 1) - mean.mean(0)
    assert torch.allclose(whole.T @ whole, sum(part.T @ part for part in parts))
    share = spectra.spectrum(parts[0]).square().sum() / spectra.spectrum(whole).square().sum()
    assert frames.frame_ranks(tokens).within_share == pytest.approx(float(share))


def test_ranks_do_not_see_scale_rotation_or_the_order_of_clips():
    tokens, turn = draw(30, 7, 4) + 1, torch.linalg.qr(draw(4, 4)).Q
    one, other = frames.frame_ranks(tokens), frames.frame_ranks(3 * tokens.flip(0) @ turn)
    for name in ("frames", "clips", "frames_centred", "clips_centred", "within", "within_share", "position_share"):
        assert getattr(one, name) == pytest.approx(getattr(other, name)), name


@pytest.mark.parametrize("shape", [(4, 8), (1, 5, 8), (5, 1, 8)])
def test_too_few_clips_or_frames_are_refused(shape):
    with pytest.raises(ValueError, match="at least two of each"):
        frames.frame_ranks(draw(*shape))


# --- the synthetic task -----------------------------------------------------------------------------------


def test_events_are_where_the_sound_is():
    """A clip less its background is silent until the first onset, and not silent there."""
    task = onset_task(2)
    for part, split in task.splits.items():
        for i, (events, wave) in enumerate(zip(split.labels, split.clips(), strict=True)):
            kind = event_task.BACKGROUNDS[i % 4]
            index = [event_task._FIRST[part] + i]
            still = event_task.synthesize(index, event_task._SEED, 4.0, family="environment", kind=kind).waveform[0]
            start = round(events[0].start_ms * 16) - 1
            scale = (wave[:start] @ still[:start]) / still[:start].square().sum()
            rest = wave - scale * still
            assert rest[:start].abs().max() < 1e-4 * wave.abs().max()
            assert rest[start : start + 800].abs().max() > 0.01 * wave.abs().max()


def test_a_clip_is_the_same_whatever_the_size_and_no_clip_is_in_two_splits():
    one, two = onset_task(1), onset_task(3)
    for part in one.splits:
        assert one.splits[part].labels == two.splits[part].labels[:1]
        assert torch.equal(next(one.splits[part].clips()), next(two.splits[part].clips()))
    assert check_task(two).remark is None


def test_onsets_keep_their_distance_and_events_lie_in_their_clips():
    for split in onset_task().splits.values():
        for events in split.labels:
            starts = np.array([event.start_ms for event in events])
            assert 1 <= len(events) <= 6 and (np.diff(starts) >= 300).all() and starts.min() >= 100
            assert max(event.end_ms for event in events) <= 4000
        assert {event.label for events in split.labels for event in events} == set(event_task.LABELS)


def test_no_clips_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        onset_task(0)


# --- a probe that finds events ----------------------------------------------------------------------------


def toy(clear: float, kind="event", folds=TRAIN_VALID_TEST):
    """Clips of 50 frames of 40 ms with one event of 200 ms each; clear: how far it stands out of the noise."""
    rng = np.random.default_rng(0)
    splits, embedded = {}, {}
    at_ms = 40.0 * np.arange(50) + 15
    for name in ("train", "valid", "test"):
        starts = rng.uniform(100, 1600, 20)
        labels = tuple([Event("bark", start, start + 200)] for start in starts)
        on = np.concatenate([(at_ms >= start) & (at_ms <= start + 200) for start in starts])
        z = rng.normal(size=(len(on), 4)) + clear * on[:, None]
        splits[name] = Split(name, labels, lambda: iter(()))
        embedded[name] = Embedded(z.astype(np.float32), np.tile(at_ms, 20), np.full(20, 50))
    return Task("toy", "v0", kind, "multilabel", ("bark",), splits, folds), embedded


def test_clear_events_are_found_and_events_in_noise_are_not():
    found = {clear: frames.linear_onsets(*toy(clear)).answers.measure("event_onset_200ms_fms") for clear in (0.0, 8.0)}
    assert found[8.0] > 0.95
    assert found[0.0] < 0.5


def test_what_was_heard_is_told_clip_by_clip():
    """Frames of an event are likelier than the others, in the clip that they belong to."""
    task, embedded = toy(8.0)
    heard = frames.linear_onsets(task, embedded)
    assert len(heard.at_ms) == len(heard.probabilities) == 20
    for at_ms, probability, (event,) in zip(heard.at_ms, heard.probabilities, task.splits["test"].labels, strict=True):
        on = (at_ms >= event.start_ms) & (at_ms <= event.end_ms)
        assert probability.shape == (50, 1)
        assert probability[on].mean() > 0.6 > 0.4 > probability[~on].mean()


def test_scenes_and_several_folds_are_refused():
    for bad in ({"kind": "scene"}, {"folds": TRAIN_VALID_TEST * 2}):
        with pytest.raises(ValueError, match="an event task with one fold"):
            frames.linear_onsets(*toy(1.0, **bad))


# --- length -----------------------------------------------------------------------------------------------


def test_dealing_again_keeps_every_stretch_at_its_time():
    mels = draw(6, 3, 11)
    dealt = frames.deal_again(mels, 4)
    assert not torch.equal(dealt, mels)
    assert torch.equal(dealt[..., 8:], mels[..., 8:])
    for start in (0, 4):
        one, other = (each[..., start : start + 4].flatten(1).tolist() for each in (mels, dealt))
        assert sorted(one) == sorted(other)
    with pytest.raises(ValueError, match="give 1 to 11"):
        frames.deal_again(mels, 12)


def test_independent_stretches_shrink_the_spread_by_the_root_of_their_number():
    """And so the raw rank falls towards one, while the centred one stays."""
    mels = draw(300, 8, 100) + 4
    found = frames.length_ranks(frames.logmel_tokens, mels, (0.01, 0.25, 1.0)).set_index("seconds")
    assert found.loc[0.01, "spread"] / found.loc[1.0, "spread"] == pytest.approx(10, rel=0.1)
    assert found["raw"].is_monotonic_decreasing
    assert found["centred"].to_numpy() == pytest.approx(8, abs=0.1)


def test_a_length_beyond_the_clips_is_refused():
    for length in (0.0, 2.0):
        with pytest.raises(ValueError, match="a length within them"):
            frames.length_ranks(frames.logmel_tokens, draw(5, 4, 100), [length])


# --- over encoders ----------------------------------------------------------------------------------------


def test_correlations_over_encoders_know_a_common_cause():
    rng = np.random.default_rng(0)
    width = np.repeat([32.0, 64.0, 128.0, 256.0], 20)
    table = pd.DataFrame({"width": width, "x": width + rng.normal(size=80), "y": width + rng.normal(size=80)})
    estimate, low, high = frames.over_encoders(table, "x", "y")
    assert 0.85 < low <= estimate <= high
    assert estimate == pytest.approx(table["x"].corr(table["y"], method="spearman"))
    alone = frames.over_encoders(table, "x", "y", draws=0)
    assert alone[0] == estimate and np.isnan(alone[1:]).all()
    _, low, high = frames.over_encoders(table, "x", "y", given="width")
    assert low < 0 < high


def test_too_few_encoders_are_refused_and_a_constant_says_nothing():
    table = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": [1.0] * 4})
    assert np.isnan(frames.over_encoders(table, "x", "y")).all()
    with pytest.raises(ValueError, match="give four"):
        frames.over_encoders(table[:3], "x", "y")


# --- figures ----------------------------------------------------------------------------------------------

ENCODERS = pd.DataFrame(
    {"label": ["a", "a", "b"], "kind": ["trained", "trained", "log-Mel"], "width": [64, 64, 64], "seed": [0, 1, 0],
     "frames": [3.0, 3.5, 5.0], "clips": [2.0, 2.5, 4.0], "score": [0.1, 0.2, 0.3],
     "within_share": [0.4, 0.5, 0.2], "position_share": [0.1, 0.1, 0.0]}
)  # fmt: skip
LENGTHS = pd.DataFrame(
    {"seconds": [1.0, 60.0] * 2, "encoder": "log-Mel", "arrangement": ["one", "one", "two", "two"],
     "raw": [5.0, 4.0, 5.0, 2.0], "centred": [6.0, 6.0, 6.0, 6.0]}
)  # fmt: skip
RANKS = {"frames": "RankMe of frames", "clips": "RankMe of clips"}
FIGURES = {
    "encoders": frame_charts.encoders_chart(ENCODERS, RANKS, {"score": "score", "clips": "clips"}),
    "equal": frame_charts.encoders_chart(ENCODERS, {"clips": "clips"}, {"frames": "frames"}, "equal", equal=True),
    "shares": frame_charts.shares_chart(ENCODERS),
    "lengths": frame_charts.lengths_chart(LENGTHS, {"raw": "raw", "centred": "centred"}),
    "heard": frame_charts.heard_chart(
        np.arange(4) * 40, np.array([[0.1, 0.9]] * 4), [Event("a", 0, 80)], ["a", "b"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_a_warning(name):
    charts.book_theme()
    assert "<svg" in vl_convert.vegalite_to_svg(FIGURES[name].to_json(), vl_version="6.1")


def test_menus_offer_what_they_were_given():
    menus = {each["name"]: each["bind"] for each in FIGURES["encoders"].to_dict()["params"] if "bind" in each}
    assert menus["encoders_x"]["options"] == list(RANKS)
    assert menus["encoders_x"]["labels"] == list(RANKS.values())


def test_bars_add_up_to_one():
    data = next(iter(FIGURES["shares"].to_dict()["datasets"].values()))
    for label in ("a", "b"):
        assert sum(row["share"] for row in data if row["label"] == label) == pytest.approx(1, abs=1e-3)
