"""Corpora of one family of sounds, RankMe on other audio, mixtures in any shares, and what is read off them."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from drawing import draw
from pydantic import ValidationError
from scipy import stats

from rankscale import records, shift, shift_charts
from rankscale.axes import same_but
from rankscale.chapters import find_root
from rankscale.config import FAMILIES, SAMPLE_RATE, RunConfig, profile
from rankscale.corpus import HELDOUT_START, SHARD, SYNTH_DIGEST, build_corpus, log_mels, synth_folder
from rankscale.experiment import Places, run
from rankscale.pretrain import trunk_hash
from rankscale.sound import synth
from rankscale.sound.synthetic_tasks import CANDIDATES
from rankscale.spectra import SpectrumAccumulator, mixture, rankme
from rankscale.sweep import missing_audio_s, plan, read_spec

ROOT = find_root()
TINY = {"clips": 64, "rank_clips": 80, "steps": 4, "batch": 8, "task_clips": 24, "tasks": ("synth:tempo",)}
ON = tuple(f"synth:{family}" for family in FAMILIES)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of twenty short recordings: enough that one in ten is held out."""
    folder = tmp_path_factory.mktemp("made") / "pool"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(20):
        soundfile.write(folder / f"{k}.wav", 0.1 * rng.normal(size=6 * SAMPLE_RATE), SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, recordings):
    places = Places(tmp_path_factory.mktemp("runs"))
    config = profile("smoke", **TINY, rank_on=(*ON, "synth", str(recordings)))
    return config, places, run(config, places, device="cpu", progress=False)


# --- configurations ---------------------------------------------------------------------------------------


def test_the_families_are_those_of_the_synthesiser():
    assert FAMILIES == synth.FAMILIES


def test_no_hash_of_a_published_record_has_changed():
    published = records.read_records(ROOT / "data" / "runs")
    assert len(published) > 150
    assert [each.hash for each in published if each.config.hash != each.hash] == []
    assert "rank_on" not in RunConfig(corpus="synth").canonical()
    assert RunConfig(rank_on="synth").hash != RunConfig().hash


def test_rank_on_names_folders_by_name_only():
    here = RunConfig(rank_on=("synth:music", "a/pool"))
    assert here.hash == RunConfig(rank_on=("synth:music", "elsewhere/pool")).hash
    assert here.portable().rank_on == ("synth:music", "pool")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"corpus": "synth:noise"}, r"'synth:noise': write synth for all families, or one of synth:speech, "),
        ({"corpus": "synth:"}, "'synth:': write synth"),
        ({"rank_on": ("synth", "synth:Speech")}, "'synth:Speech': write synth"),
        ({"corpus": ("synth:speech", "synth:music")}, "name synthetic sound once"),
        ({"corpus": ("synth", "synth:music")}, "name synthetic sound once"),
        ({"rank_on": "shards:a/*.tar"}, "tar shards are only trained on"),
    ],
)
def test_what_the_synthesiser_does_not_know_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        RunConfig(**change)


def test_runs_that_are_only_measured_on_more_share_their_training():
    assert trunk_hash(RunConfig(schedule="branch", rank_on=ON)) == trunk_hash(RunConfig(schedule="branch"))


# --- corpora ----------------------------------------------------------------------------------------------


def test_a_family_is_a_corpus_of_its_own(tmp_path):
    config = profile("smoke", **TINY, corpus="synth:music")
    built = build_corpus(config, tmp_path, progress=False)
    assert [(s.name, s.digest, s.train_clips, s.heldout_clips) for s in built.sources] == [
        ("synth:music", SYNTH_DIGEST, 64, 80)
    ]
    numbers = [0, 63, HELDOUT_START, HELDOUT_START + 79]
    rows = np.array([*built.train_rows[[0, 63]], *built.heldout_rows[[0, 79]]])
    alone = synth.synthesize(numbers, clip_s=config.clip_s, family="music").waveform
    expected = torch.from_numpy(log_mels(alone, config.frames)).float()
    torch.testing.assert_close(built.store.take(rows), expected, rtol=0, atol=0.1)  # dB; float16 has steps of 0.06
    assert [path.name for path in tmp_path.iterdir()] == [synth_folder("synth:music", config, tmp_path).name]
    assert synth_folder("synth", config, tmp_path).name.startswith(f"synth-{SYNTH_DIGEST}-")  # as it always was


def test_a_family_is_mixed_with_recordings_as_all_families_are(tmp_path, recordings):
    built = {
        entry: build_corpus(profile("smoke", **TINY, corpus=(entry, str(recordings))), tmp_path, progress=False)
        for entry in ("synth", "synth:speech")
    }
    counts = {entry: [(s.train_clips, s.heldout_clips) for s in each.sources] for entry, each in built.items()}
    assert counts["synth:speech"] == counts["synth"]
    assert [s.name for s in built["synth:speech"].sources] == ["pool", "synth:speech"]
    assert np.array_equal(built["synth:speech"].train_rows, built["synth"].train_rows)


def test_other_audio_is_never_what_the_run_was_trained_on(tmp_path, recordings):
    folder = str(recordings)
    unheard = build_corpus(profile("smoke", **TINY, rank_on=folder), tmp_path, progress=False)
    heard = build_corpus(profile("smoke", **TINY, corpus=("synth", folder), rank_on=folder), tmp_path, progress=False)
    assert len(unheard.others["pool"].heldout_rows) == 80  # of twenty recordings with five or so clips each
    n = heard.sources[0].heldout_clips
    assert len(heard.others["pool"].heldout_rows) == n < 40
    other, own = heard.others["pool"], heard.heldout_rows[:n]
    assert torch.equal(other.store.take(other.heldout_rows), heard.store.take(own))


def test_the_audio_that_is_still_to_be_made_is_counted_by_family(tmp_path):
    one, many = profile("smoke", clips=300, rank_clips=100), profile("smoke", clips=300, rank_clips=100, rank_on=ON)
    shard_s = SHARD * one.clip_s
    assert missing_audio_s([one], tmp_path) == pytest.approx(3 * shard_s)
    assert missing_audio_s([one.replace(corpus="synth:speech")], tmp_path) == pytest.approx(3 * shard_s)
    assert missing_audio_s([one, many], tmp_path) == pytest.approx((3 + 3) * shard_s)
    assert missing_audio_s([many.replace(corpus=c) for c in ON], tmp_path) == pytest.approx((3 * 3) * shard_s)


def test_the_sweep_has_every_corpus_with_every_rank():
    planned = plan(read_spec(ROOT / "data" / "sweeps" / "shift.yaml"))
    trained = [each.config for each in planned if each.floor]
    assert {(each.corpus, each.seed) for each in trained} == {((c,), s) for c in (*ON, "synth") for s in (0, 1)}
    assert all(set(ON) < set(each.rank_on) for each in trained)
    assert len(trained) == 16


# --- records ----------------------------------------------------------------------------------------------


def test_a_record_has_the_rank_on_every_other_audio(made):
    config, places, record = made
    assert record == records.read_record(records.record_path(places.records, config))
    assert list(record.rank_on) == [*ON, "synth", "pool"]
    assert record.rank_on["synth"].model_dump() == record.rank.model_dump()  # the very clips that are held out
    assert len({round(each.rankme, 6) for each in record.rank_on.values()}) == 5
    floor = records.read_record(records.record_path(places.records, config.untrained()))
    assert list(floor.rank_on) == list(record.rank_on)
    extra = {s.name: (s.train_clips, s.heldout_clips) for s in record.sources[1:]}
    assert extra == dict.fromkeys(record.rank_on, (0, 80))


def test_the_moments_of_other_audio_stand_beside_the_record_and_are_published(made, tmp_path):
    config, places, record = made
    assert records.publish([config], places.records, tmp_path / "runs")
    for entry, rank in record.rank_on.items():
        moments = SpectrumAccumulator.load(records.moments_path(tmp_path / "runs", config, entry))
        assert moments.rows == 80
        again = shift.mixed_ranks({entry: moments}, [[1.0]]).iloc[0]
        assert (again["rankme"], again["centred"]) == pytest.approx((rank.rankme, rank.rankme_centred), rel=1e-5)
    assert "synth:speech+synth:music" in (tmp_path / "runs.csv").read_text()


def test_too_few_clips_leave_no_rank(tmp_path):
    config = profile("smoke", **TINY | {"rank_clips": 40}, rank_on="synth:speech")
    record = run(config.untrained(), Places(tmp_path), device="cpu", progress=False)
    assert record.rank_on == {"synth:speech": None}


# --- mixtures ---------------------------------------------------------------------------------------------


def clouds(*rows, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + 3 * rng.normal(size=dim) for n in rows]


def accumulate(z):
    return SpectrumAccumulator(z.shape[1]).update(z)


@pytest.mark.parametrize("center", [False, True])
def test_a_mixture_is_what_the_clips_themselves_give(center):
    parts = clouds(40, 60, 90)
    moments = [accumulate(z) for z in parts]
    # Shares of 1/2, 1/3, 1/6 of all rows: every row of part i counted so often that it is so.
    repeated = np.concatenate([np.repeat(z, k, axis=0) for z, k in zip(parts, (27, 12, 4), strict=True)])
    mixed = mixture(moments, [1 / 2, 1 / 3, 1 / 6])
    scale = np.sqrt(len(repeated) / mixed.rows)
    found = mixed.spectrum(center).numpy() * scale
    assert found == pytest.approx(accumulate(repeated).spectrum(center).numpy(), rel=1e-9)
    assert rankme(mixed, center=center) == pytest.approx(rankme(repeated, center=center), rel=1e-9)


def test_a_mixture_in_proportion_is_a_merge_and_leaves_its_parts_alone():
    parts = clouds(40, 60, 90)
    moments = [accumulate(z) for z in parts]
    whole = np.concatenate(parts)
    mixed = mixture(moments, [len(z) / len(whole) for z in parts])
    assert mixed.rows == len(whole)
    for center in (False, True):
        assert mixed.spectrum(center).numpy() == pytest.approx(accumulate(whole).spectrum(center).numpy(), rel=1e-10)
    assert mixture(moments, [0, 1, 0]).rows == 60
    assert rankme(mixture(moments, [0, 1, 0])) == pytest.approx(rankme(parts[1]), rel=1e-12)
    assert rankme(moments[0]) == pytest.approx(rankme(parts[0]), rel=1e-12)


@pytest.mark.parametrize(
    ("shares", "words"),
    [([0.5, 0.6], "with sum 1"), ([1.5, -0.5], "from 0 up"), ([1.0], "each of the 2 parts"), ([], "each of the 2")],
)
def test_shares_that_are_none_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        mixture([accumulate(z) for z in clouds(20, 30)], shares)


def test_parts_that_do_not_fit_are_refused():
    good = accumulate(clouds(20)[0])
    for bad in (accumulate(clouds(20, dim=5)[0]), SpectrumAccumulator(6), SpectrumAccumulator(6, "tsqr")):
        with pytest.raises(ValueError, match="a mixture needs parts of one width"):
            mixture([good, bad], [0.5, 0.5])


# --- what is read off the records -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short():
    return shift.shift_runs(records.read_records(ROOT / "data" / "runs"), shift.CENTRES["live"])


def test_the_runs_of_a_shift_differ_in_corpus_and_seed_alone(short):
    assert [(each.config.corpus[0], each.config.seed) for each in short] == [
        (c, s) for c in (*ON, "synth") for s in (0, 1)
    ]
    everything = records.read_records(ROOT / "data" / "runs")
    floors = shift.shift_runs(everything, shift.CENTRES["live"], steps=False)
    assert [each.hash for each in floors] == [each.config.untrained().hash for each in short]


def test_a_seed_that_one_corpus_lacks_is_left_out(short):
    extra = [each.model_copy(update={"config": each.config.replace(seed=7)}) for each in short[:7:2]]
    with_three = shift.shift_runs([*short, *extra], shift.CENTRES["live"])
    assert {each.config.seed for each in with_three} == {0, 1, 7} and len(with_three) == 12
    assert shift.shift_runs([*short, *extra[:3]], shift.CENTRES["live"]) == short
    with pytest.raises(ValueError, match=r"fewer than two seeds .* en64-2, 300 steps.*sweeps/shift\.yaml"):
        shift.shift_runs(short[:7], shift.CENTRES["live"])


@pytest.mark.parametrize("name", ["small", "live"])
def test_the_runs_of_the_sweep_are_those_that_the_chapter_looks_for(name):
    planned = plan(read_spec(ROOT / "data" / "sweeps" / "shift.yaml"))
    centre = shift.CENTRES[name]
    for trained in (True, False):
        wanted = centre if trained else centre.untrained()
        found = {(e.config.corpus, e.config.seed) for e in planned if same_but(e.config, wanted, ("corpus",))}
        assert found == {((c,), s) for c in (*ON, "synth") for s in (0, 1)}


def test_tables_say_what_the_records_do(short):
    ranks, quality = shift.ranks_table(short), shift.quality_table(short)
    assert len(ranks) == 8 * 4 and ranks["own"].sum() == 8
    row = ranks[(ranks["hash"] == short[0].hash) & (ranks["measured"] == "mixture")].iloc[0]
    assert (row["trained"], row["rankme"]) == ("speech", short[0].rank_on["synth"].rankme_corrected)
    of_run = quality[(quality["hash"] == short[0].hash) & (quality["probe"] == "mlp")].set_index("family")
    assert of_run.loc["music", "q"] == short[0].scores["mlp"]["pitch"]["score"]
    assert of_run.loc["all", "q"] == pytest.approx(short[0].quality["mlp"]["synthetic"])
    assert of_run["tasks"].to_dict() == {"speech": 1, "music": 1, "environment": 1, "all": 3}


def test_every_task_of_the_plan_has_one_family_or_none():
    named = [task for tasks in shift.FAMILY_OF_TASK.values() for task in tasks]
    assert len(named) == len(set(named))
    real = {"esc10", "fsdd_digit", "fsdd_speaker", "notes_instrument", "notes_pitchclass"}
    assert set(CANDIDATES) | real == set(named) | {"sources", "tags"}


def toy_tables():
    """Two corpora: on speech the music encoder has the higher rank, on music the speech encoder has."""
    rank = {("speech", "speech"): 10.0, ("music", "speech"): 12.0, ("speech", "music"): 20.0, ("music", "music"): 18.0}
    rows = [(t, 0, t, m, t == m, 100, r, r, np.log(r)) for (t, m), r in rank.items()]
    columns = ["hash", "seed", "trained", "measured", "own", "n_clip", "rankme", "centred", "log_rank"]
    q = {("speech", "speech"): 0.5, ("music", "speech"): 0.3, ("speech", "all"): 0.4, ("music", "all"): 0.45}
    scores = [(t, 0, "linear", suite, f, v, 1, t) for (t, f), v in q.items() for suite in ("synthetic", "real")]
    names = ["hash", "seed", "probe", "suite", "family", "q", "tasks", "trained"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(scores, columns=names)


def test_a_choice_costs_what_the_best_has_more():
    choices = shift.choices(*toy_tables()).set_index(["suite", "family", "measured"]).sort_index()
    wrong, right = choices.loc[("synthetic", "speech", "speech")], choices.loc[("synthetic", "speech", "music")]
    assert (wrong["chosen"], wrong["best"], wrong["match"]) == ("music", "speech", True)
    assert (right["chosen"], right["match"]) == ("speech", False)
    assert (wrong["regret"], right["regret"], wrong["blind"]) == pytest.approx((0.2, 0.0, 0.1))
    assert not choices["match"].loc[("synthetic", "all")].any()  # nothing was measured on mixtures


def test_audio_is_like_real_tasks_if_it_is_recorded_or_of_their_family():
    ranks, quality = toy_tables()
    recorded = ranks.assign(measured=ranks["measured"].replace("music", shift.RECORDINGS))
    match = shift.both(recorded, quality).drop_duplicates(["suite", "family", "measured"])
    like = match[match["match"]][["suite", "family", "measured"]].to_numpy().tolist()
    assert sorted(like) == [
        ["real", "all", "recordings"], ["real", "speech", "recordings"], ["real", "speech", "speech"],
        ["synthetic", "speech", "speech"],
    ]  # fmt: skip


# --- how sure ---------------------------------------------------------------------------------------------


def test_a_sum_over_two_corpora_is_welchs_interval():
    a, b = np.array([1.0, 4.0, 2.5]), np.array([7.0, 7.5])
    signed = pd.Series([*a, *-b], index=list("abcde"))
    total, low, high = shift.sum_over_corpora(signed, pd.Index(["x"] * 3 + ["y"] * 2))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (total, low, high) == pytest.approx((a.mean() - b.mean(), expected.low, expected.high))


def world(own=0.0, audio=0.0, corpus=0.0, seed=0.0, q_own=0.0):
    """Eight runs, two of each corpus, on four kinds of audio, with effects of known size."""
    kinds, ranks, quality, mixed = [*FAMILIES, shift.MIXTURE], [], [], []
    for i, trained in enumerate(kinds):
        for s in (0, 1):
            key = f"{trained}{s}"
            level = {m: 3 + corpus * i + audio * j + own * (m == trained) + seed * s for j, m in enumerate(kinds)}
            for measured, log in level.items():
                rank = np.exp(log)
                ranks.append((key, s, trained, measured, trained == measured, 100, rank, 30.0 + s, log))
            for j, family in enumerate([*FAMILIES, "all"]):
                q = 0.3 + q_own * (family == trained) + 0.01 * s * (j == 0)
                quality.append((key, s, "linear", "synthetic", family, q, 2, trained))
            for name, shares in zip((*FAMILIES, None), (*np.eye(3), shift.EVEN_SHARES), strict=True):
                mixed.append((key, trained, *shares, np.exp(level[name or shift.MIXTURE]), 30.0 + s))
    columns = ["hash", "seed", "trained", "measured", "own", "n_clip", "rankme", "centred", "log_rank"]
    names = ["hash", "seed", "probe", "suite", "family", "q", "tasks", "trained"]
    return (
        pd.DataFrame(ranks, columns=columns),
        pd.DataFrame(quality, columns=names),
        pd.DataFrame(mixed, columns=["hash", "trained", *FAMILIES, "rankme", "centred"]),
    )


def test_the_variance_is_split_into_what_was_put_in():
    split = shift.split_variance(world(audio=2.0, corpus=1.0)[0])
    assert split.to_dict() == pytest.approx({"measured on": 0.8, "trained on": 0.2, "interaction": 0, "seed": 0})
    split = shift.split_variance(world(own=1.0, seed=0.5)[0])
    assert split["interaction"] == pytest.approx(0.75) and split["seed"] == pytest.approx(0.25)


def test_every_set_has_one_run_of_each_corpus():
    sets = shift.one_of_each(world()[0])
    assert len({frozenset(each) for each in sets}) == 16
    assert all(sorted(name[:-1] for name in each) == sorted([*FAMILIES, shift.MIXTURE]) for each in sets)


def test_expected_signs_find_what_was_put_in():
    table = shift.expected_signs(*world(own=0.2, audio=0.4, seed=0.01, q_own=0.1)).set_index("question")
    own, audio, mixtures, tasks, every, regret, tilt = (row for _, row in table.iterrows())
    # Mixtures less a family: 0.4 * (3 - 1); the own families' 0.2 less the mixtures' own, 3 of 12 each, cancel.
    assert own["found"] == pytest.approx(0.2) and own["answer"] == "as expected" and (own["so"], own["of"]) == (6, 6)
    assert audio["answer"] == "as expected" and audio["by"] == "range" and audio["of"] == 16
    assert mixtures["found"] == pytest.approx(0.8)
    assert tasks["found"] == pytest.approx(0.1) and tasks["answer"] == "as expected"
    assert every["answer"] == "open"  # all alike
    assert regret["found"] == pytest.approx(0.1) and regret["answer"] == "as expected" and regret["of"] == 3
    assert tilt["found"] == pytest.approx(-mixtures["found"]) and tilt["answer"] == "as expected"


def test_expected_signs_turn_with_what_was_put_in():
    table = shift.expected_signs(*world(own=-0.2, audio=-0.4, corpus=3.0, q_own=-0.1))
    answers = dict(zip(table["question"], table["answer"], strict=True))
    assert [answer for name, answer in answers.items() if "family A" in name] == ["the reverse", "the reverse"]
    assert answers["what moves RankMe: the audio against the corpus"] == "the reverse"
    flat = shift.expected_signs(*world(own=-0.2, audio=-0.4, q_own=-0.1), "centred")
    assert set(flat[flat["question"].str.contains("RankMe")]["answer"]) == {"open"}  # centred: seeds alone differ


def test_regrets_count_every_family_once_and_all_never():
    ranks, quality, _ = world(own=0.2, q_own=0.1)
    regrets = shift.family_regrets(ranks, quality)
    assert regrets.index.get_level_values("set").nunique() == 16
    assert regrets.index.get_level_values("family").unique().tolist() == list(FAMILIES)
    table = shift.over_families(regrets)
    # On its own audio each corpus is chosen, and is the best; on any other it is not. Blind: three in four lose 0.1.
    assert table["mean"].to_dict() == pytest.approx(
        {"like": 0, "foreign": 0.1, "blind": 0.075, "foreign - like": 0.1, "like - blind": -0.075}, abs=0.005
    )
    assert (table["least"] <= table["mean"]).all() and (table["mean"] <= table["most"]).all()
    each = regrets.groupby("family")["blind"].mean()
    assert (table.loc["blind", "high"] - table.loc["blind", "low"]) / 2 == pytest.approx(
        stats.t.ppf(0.975, 2) * each.sem()
    )


def test_the_means_share_is_what_the_mean_says(short):
    shares = shift.mean_shares(short[:1], ROOT / "data" / "runs").set_index("measured")["mean_share"]
    assert list(shares.index) == [*FAMILIES, shift.MIXTURE]
    moments = SpectrumAccumulator.load(records.moments_path(ROOT / "data" / "runs", short[0].config, "synth:music"))
    squares = moments.mean.square().sum()
    total = squares + moments._about_mean.trace() / moments.rows
    assert shares["music"] == pytest.approx(float(squares / total))
    assert 0.1 < shares["music"] < 0.9


def test_a_corner_of_the_triangle_is_the_rank_on_that_family_alone(short):
    moments = shift.family_moments(short[0], ROOT / "data" / "runs")
    table = shift.mixed_ranks(moments, [(1, 0, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3)])
    alone = [short[0].rank_on[entry] for entry in ("synth:speech", "synth:environment")]
    assert table["rankme"][:2].tolist() == pytest.approx([each.rankme for each in alone], rel=1e-5)
    assert table["centred"][:2].tolist() == pytest.approx([each.rankme_centred for each in alone], rel=1e-5)
    assert table["between"][:2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert 0 < table["between"][2] < 1


def test_the_variance_between_families_is_what_their_means_say():
    parts = clouds(50, 50)
    moments = {"a": accumulate(parts[0]), "b": accumulate(parts[1])}
    whole = np.concatenate(parts)
    step = parts[0].mean(0) - parts[1].mean(0)
    expected = step @ step / 4 / whole.var(axis=0).sum()
    assert shift.mixed_ranks(moments, [(0.5, 0.5)])["between"][0] == pytest.approx(expected)


def test_shares_go_round_the_triangle_and_along_its_heights():
    assert len(shift.triangle(10)) == len(set(shift.triangle(10))) == 66
    assert np.allclose(np.sum(shift.triangle(10), axis=1), 1)
    along = np.array(shift.towards("music", 20))
    assert along[0].tolist() == [0.5, 0, 0.5] and along[-1].tolist() == [0, 1, 0]
    assert np.allclose(along.sum(axis=1), 1)


draw_small = partial(draw, most=120_000)


def test_the_figures_can_be_drawn(short):
    ranks, quality = shift.ranks_table(short), shift.quality_table(short)
    svg = draw_small(shift_charts.matrix_chart(ranks.rename(columns={"measured": "across"}), "rankme", "RankMe"))
    assert f"{ranks.groupby(['trained', 'measured'])['rankme'].mean().max():.1f}" in svg
    points = [
        (shift.name_of(each.config.corpus[0]), each.config.seed, p.step, p.rankme, 0.2, p.heldout_loss)
        for each in short for p in each.history
    ]  # fmt: skip
    values = np.array(short[0].rank_on["synth:music"].singular_values)[:-1]
    one = {"trained": "speech", "measured": "music", "index": np.arange(1, len(values) + 1), "share": values}
    assert "index of the singular value" in draw_small(shift_charts.spectra_chart(pd.DataFrame(one)))
    history = pd.DataFrame(points, columns=["trained", "seed", "step", "rankme", "top", "heldout_loss"])
    drawn = draw_small(shift_charts.history_chart(history))
    assert "largest share" in drawn and "held-out loss" in drawn and "training step" in drawn
    assert "RankMe on the chosen audio" in draw_small(shift_charts.foreign_chart(shift.both(ranks, quality)))
    assert "music, synthetic" in draw_small(shift_charts.regret_chart(shift.choices(ranks, quality)))
    moments = shift.family_moments(short[0], ROOT / "data" / "runs")
    whole = shift.mixed_ranks(moments, shift.triangle(4)).assign(trained="speech")
    assert f"highest: {whole['rankme'].max():.3g} with" in draw_small(shift_charts.triangle_chart(whole))
    along = shift.mixed_ranks(moments, shift.towards("music")).assign(trained="speech", family="music")
    assert "share of the chosen family" in draw_small(shift_charts.share_chart(along.assign(share=along["music"])))
