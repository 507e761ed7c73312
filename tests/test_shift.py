"""Corpora of one family of sounds, RankMe on other audio, mixtures in any shares, and what is read off them."""

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from rankscale import records, shift
from rankscale.chapters import find_root
from rankscale.config import FAMILIES, SAMPLE_RATE, RunConfig, profile
from rankscale.corpus import HELDOUT_START, SHARD, SYNTH_DIGEST, build_corpus, log_mels, synth_folder
from rankscale.experiment import Places, run
from rankscale.pretrain import trunk_hash
from rankscale.sound import synth
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
    assert found == pytest.approx(accumulate(repeated).spectrum(center).numpy(), rel=3e-3)  # rows are a whole number
    assert rankme(mixed, center=center) == pytest.approx(rankme(repeated, center=center), rel=1e-4)
    assert rankme(mixed, center=True) == pytest.approx(rankme(repeated, center=True), rel=1e-9)


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
