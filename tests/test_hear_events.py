"""Events and scores of HEAR: known answers by hand, and the numbers of sed_eval, hear-eval-kit and scikit-learn.

hear_reference.json holds what sed_eval 0.2.1 scored and what `create_events_from_prediction` of hear-eval-kit 2021.1.3
made of the inputs in it and of `ramps`; neither can be installed beside this project's packages.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from rankscale.hear_eval import (
    EVENT_METRICS,
    Answers,
    PostProcessing,
    chance,
    find_events,
    frame_targets,
    interval,
    match_counts,
    metrics_of,
    segment_counts,
)
from rankscale.sound.tasks import TRAIN_VALID_TEST, Event, Split, Task

REFERENCE = json.loads(Path(__file__).with_name("hear_reference.json").read_text())


def make_task(prediction="multiclass", kind="scene", vocabulary=("a", "b", "c"), evaluation=()):
    splits = {s: Split(s, np.zeros((4, len(vocabulary)), bool), lambda: iter(())) for s in ("train", "valid", "test")}
    return Task("toy", "v0", kind, prediction, vocabulary, splits, TRAIN_VALID_TEST, evaluation=evaluation)


def bark(start, end=None, label="bark"):
    return Event(label, start, start + 100 if end is None else end)


def rate(counts):
    return counts[0] / counts[1]


# --- frames and events ------------------------------------------------------------------------------------


def test_the_ends_of_an_event_belong_to_it():
    at_ms = np.array([0, 50, 100, 150, 200.0])
    on = frame_targets([bark(50, 150), bark(120, 130, "clap"), bark(200, 300)], at_ms, ("clap", "bark"))
    assert on[:, 1].tolist() == [False, True, True, True, True] and not on[:, 0].any()
    assert not frame_targets([], at_ms, ("bark",)).any()


def test_runs_of_frames_above_one_half_are_events():
    heard = np.array([[0.9, 0.1], [0.6, 0.2], [0.5, 0.8], [0.7, 0.9], [0.1, 0.1]])
    at_ms = np.arange(5) * 40 + 15.0
    (found, longer), (single,) = (
        find_events(heard, at_ms, ("bark", "clap"), [PostProcessing(0, 0), PostProcessing(0, 40)]),
        find_events(heard[:1], at_ms[:1], ("bark", "clap"), [PostProcessing(250, 0)]),
    )
    assert found == [bark(15, 55), bark(95, 135, "clap"), bark(135, 135)]
    assert longer == [bark(15, 55), bark(95, 135, "clap")]
    assert single == [bark(15, 15)]


def test_a_median_filter_erases_what_is_shorter_than_half_of_it():
    heard = np.zeros((60, 1))
    heard[10:12], heard[30:50] = 1, 1
    ((found,),) = (find_events(heard, np.arange(60) * 50.0, ("bark",), [PostProcessing(250, 0)]),)
    assert found == [bark(1500, 2450)]


def test_post_processing_is_that_of_hear_eval_kit():
    ramps = np.sort(np.random.default_rng(1).random((80, 2)).reshape(-1, 8, 2), axis=1).reshape(80, 2)
    made = REFERENCE["post_processing"]
    ways = [PostProcessing(way["median_ms"], way["min_ms"]) for way in made]
    found = find_events(ramps, 25 + 50.0 * np.arange(80), ("bark", "clap"), ways)
    assert [sorted(events) for events in found] == [sorted(Event(*e) for e in way["events"]) for way in made]
    assert len({len(events) for events in found}) > 3


# --- scores of events -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", EVENT_METRICS)
def test_scores_are_those_of_sed_eval(metric):
    pairs = [([Event(*e) for e in c["reference"]], [Event(*e) for e in c["predicted"]]) for c in REFERENCE["clips"]]
    answers = Answers(make_task("multilabel", "event"), *zip(*pairs, strict=True))
    assert answers.measure(metric) == pytest.approx(REFERENCE["scores"][metric], rel=1e-12)


@pytest.mark.parametrize("metric", EVENT_METRICS)
def test_perfect_and_empty_answers(metric):
    truth = [[bark(0, 300), bark(900, 2100)], [], [bark(400, 500, "clap")]]
    perfect, empty, nothing = (
        Answers(make_task("multilabel", "event"), *pair).measure(metric)
        for pair in ((truth, truth), (truth, [[], [], []]), ([[]], [[]]))
    )
    assert (perfect, empty) == ((0, 1) if metric == "segment_1s_er" else (1, 0))
    assert np.isnan(nothing)


def test_events_pair_by_label_within_the_collar():
    assert rate(match_counts([bark(500)], [bark(700)], 200)) == 1
    assert rate(match_counts([bark(500)], [bark(701)], 200)) == 0
    assert rate(match_counts([bark(500)], [bark(500, label="clap")], 200)) == 0
    assert match_counts([bark(500)], [bark(450), bark(550)], 200) == (2, 3)
    assert rate(match_counts([bark(500, 1500)], [bark(500, 1700)], 50, 0.2)) == 1
    assert rate(match_counts([bark(500, 1500)], [bark(500, 1701)], 50, 0.2)) == 0


def test_the_pairing_is_the_largest():
    """First come, first served would pair 100 with 200 and leave 350 alone."""
    assert rate(match_counts([bark(100), bark(350)], [bark(200), bark(0)], 200)) == 1


def test_segments_count_each_error_once():
    assert segment_counts([bark(0, 900)], [bark(0, 900, "clap")]) == (1, 1)  # a substitution
    assert segment_counts([bark(0, 900)], [bark(0, 2500)]) == (2, 1)  # insertions
    assert segment_counts([bark(0, 1000)], []) == (1, 1)  # an end on a border is not in the next segment
    assert segment_counts([bark(0, 1001)], []) == (2, 2)


# --- scores of scenes -------------------------------------------------------------------------------------


def test_an_octave_off_has_the_right_chroma_and_the_wrong_pitch():
    notes = tuple(map(str, range(59, 85)))  # class numbers are not MIDI notes
    task = make_task(vocabulary=notes, evaluation=("pitch_acc", "chroma_acc"))
    truth = np.array([1, 4, 20, 8])
    given = np.eye(26)[[1, 16, 8, 9]]  # right, an octave above, an octave below, a semitone off
    answers = Answers(task, truth, given)
    assert answers.measure("pitch_acc") == answers.measure("top1_acc") == 0.25
    assert answers.measure("chroma_acc") == 0.75
    assert metrics_of(task)[:3] == ("pitch_acc", "chroma_acc", "top1_acc")
    assert (chance(task, "pitch_acc"), chance(task, "chroma_acc")) == (1 / 26, 1 / 12)


def test_averages_over_classes_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth, given = rng.random((50, 3)) < 0.3, rng.random((50, 3))
    answers = Answers(make_task("multilabel"), truth, given)
    assert answers.measure("mAP") == pytest.approx(average_precision_score(truth, given))
    assert answers.measure("aucroc") == pytest.approx(roc_auc_score(truth, given))
    assert Answers(make_task("multilabel"), truth, truth.astype(float)).measure("mAP") == 1
    assert Answers(make_task("multilabel"), truth, 0.5 + 0 * given).measure("d_prime") == 0
    assert np.isnan(Answers(make_task("multilabel"), truth & False, given).measure("mAP"))
    classes = truth.argmax(axis=1)
    assert Answers(make_task(), classes, given).measure("mAP") == pytest.approx(
        average_precision_score(np.eye(3)[classes], given)
    )


def test_metrics_are_the_authors_first():
    assert metrics_of(make_task()) == ("top1_acc", "mAP", "d_prime", "aucroc")
    assert metrics_of(make_task("multilabel", evaluation=("d_prime",))) == ("d_prime", "mAP", "aucroc")
    assert metrics_of(make_task("multilabel", "event", evaluation=("segment_1s_er",)))[0] == "segment_1s_er"


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (make_task(evaluation=("top1_akk",)), "metric 'top1_akk' is unknown"),
        (make_task("multilabel", evaluation=("top1_acc",)), "not for a multilabel scene task"),
        (make_task(evaluation=("segment_1s_er",)), "choose among top1_acc"),
        (make_task(evaluation=("chroma_acc",)), "labels that are MIDI notes"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(task, fault):
    with pytest.raises(ValueError, match=f"task toy.*{fault}"):
        metrics_of(task)


# --- intervals --------------------------------------------------------------------------------------------


def coin(n, right, task=None):
    truth = np.arange(n) % 3
    wrong = np.arange(n) >= round(right * n)
    return Answers(task or make_task(), truth, np.eye(3)[(truth + wrong) % 3])


def test_intervals_of_accuracy_are_those_of_theory():
    low, high = interval([coin(400, 0.5)], "top1_acc")
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.008)  # 0.5 -+ 1.96 * sqrt(0.25 / 400)
    low, high = interval([coin(100, 0.5)] * 4, "top1_acc")  # as many clips in four folds
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.008)
    assert interval([coin(50, 1)], "top1_acc") == (1, 1)


def test_folds_are_drawn_within():
    """Between folds there is no noise of drawing: one fold is all right, one all wrong."""
    assert interval([coin(50, 1), coin(50, 0)], "top1_acc") == (0.5, 0.5)


def test_intervals_hold_the_value_and_are_seeded():
    rng = np.random.default_rng(0)
    truth = rng.random((60, 3)) < 0.4
    answers = Answers(make_task("multilabel"), truth, truth + rng.normal(size=(60, 3)))
    low, high = interval([answers], "mAP", seed=3)
    assert low < answers.measure("mAP") < high < low + 0.5
    assert interval([answers], "mAP", seed=3) == (low, high) != interval([answers], "mAP", seed=4)
    events = Answers(make_task("multilabel", "event"), [[bark(0)], []] * 10, [[bark(0)], [bark(9)]] * 10)
    low, high = interval([events], "event_onset_50ms_fms")
    assert 0 < low < 2 / 3 < high < 1
