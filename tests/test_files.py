"""Folders of audio files: every odd file is sound or has a reason, and clips are the same however they are read."""

import json
import math
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.functional import resample

from rankscale.sound import files
from rankscale.sound.files import AudioError, Report, clip_table, iter_clips, load_clip, read_audio, scan

RATE = 16_000

REASONS = {  # files that both the shared and the made set have
    "broken_header_only.wav": "none are there",
    "broken_text.wav": "not an audio file",
    "broken_zero_bytes.wav": "zero bytes",
    "derived_0_samples.wav": "no samples",
    "derived_1_samples.wav": "too short",
    "derived_100_samples.wav": "too short",
    "derived_400_samples.wav": "too short",
    "derived_512_samples.wav": "too short: 0.0320 s",
    "derived_aac.m4a": "convert it first",
    "derived_antiphase.wav": "channels cancel",
    "derived_nan_inf.wav": "NaN or infinite sample at 0.312 s",
    "derived_silence_1s.flac": "every sample is zero",
    "tinytag_incomplete.mp3": "no audio found",
    "tinytag_test.aiff": "no samples",
}
REMARKS = {
    "broken_corrupt_frames.flac": "damaged: the decoder stopped",
    "broken_truncated.flac": "damaged: the decoder stopped",
    "broken_truncated.mp3": "truncated: header says",
    "broken_truncated.wav": "truncated: header says",
}


@pytest.fixture(scope="module")
def awkward(awkward_audio: Path, tmp_path_factory) -> files.Manifest:
    return scan(awkward_audio, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)


def noise(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave, rate, subtype=subtype)
    return path


def scan_quietly(folder: Path, **options) -> files.Manifest:
    return scan(folder, cache_dir=folder.parent / "cache", progress=False, **options)


# --- awkward files


@pytest.mark.real_audio
def test_every_awkward_file_gives_finite_sound_of_the_stated_length_or_an_error(awkward_audio):
    entries = json.loads((awkward_audio / "manifest.json").read_text())["files"]
    refused = {entry["file"] for entry in entries if entry["soundfile"].startswith("error: Error opening")}
    refused |= {entry["file"] for entry in entries if entry.get("header_frames") == 0} | {"derived_nan_inf.wav"}
    for entry in entries:
        path = awkward_audio / entry["file"]
        if entry["file"] in refused:
            with pytest.raises(AudioError, match=path.name):
                read_audio(path)
            continue
        waveform = read_audio(path)
        assert waveform.dtype == torch.float32 and waveform.ndim == 1 and waveform.isfinite().all(), path
        assert waveform.abs().max() <= 1, path
        if entry.get("read_frames") is not None:
            assert len(waveform) == math.ceil(entry["read_frames"] * RATE / entry["samplerate"]), path
        else:  # FLAC that fails in the middle: what came before it is kept
            assert 0.1 * RATE < len(waveform) < entry["header_frames"] * RATE / entry["samplerate"], path


@pytest.mark.real_audio
def test_scan_names_every_awkward_file_once(awkward_audio, awkward):
    there = {path.name for path in awkward_audio.iterdir() if path.suffix in files.SUFFIXES | files.UNREADABLE_SUFFIXES}
    usable, rejected = {file.path for file in awkward.files}, dict(awkward.rejected)
    assert usable | set(rejected) == there and not usable & set(rejected)
    for name, reason in REASONS.items():
        assert reason in rejected[name]
    remarks = {file.path: file.remark for file in awkward.files if file.remark}
    for name, remark in REMARKS.items():
        assert remark in remarks[name]
    assert all(name in awkward.summary(99) for name in [*rejected, *remarks])


@pytest.mark.real_audio
def test_truncated_wav_reports_both_lengths(awkward_audio, awkward):
    whole = sf.info(awkward_audio / "mono_44k1_24bit.wav").duration
    file = next(file for file in awkward.files if file.path == "broken_truncated.wav")
    assert file.remark == f"truncated: header says {whole:.2f} s, read {file.seconds:.2f} s"
    assert file.seconds == pytest.approx(0.4 * whole, rel=0.01)


@pytest.mark.real_audio
@pytest.mark.parametrize("name", ["broken_truncated.flac", "broken_corrupt_frames.flac"])
def test_what_is_kept_of_a_damaged_file_is_right(awkward_audio, name):
    kept, whole = read_audio(awkward_audio / name), read_audio(awkward_audio / "derived_24bit.flac")
    sure = len(kept) - 200  # the resampling filter reaches beyond the damage
    torch.testing.assert_close(kept[:sure], whole[:sure], rtol=0, atol=1e-5)


@pytest.mark.real_audio
@pytest.mark.parametrize("clip_s", [0.5, 1.28])
def test_awkward_clips_are_finite_and_the_same_in_any_order(awkward, clip_s):
    def too_slow(file):  # a long file that cannot seek is decoded again for each clip
        return file.seconds > 60 and not file.seekable

    clips = list(iter_clips(awkward, clip_s, skip=too_slow))
    table = clip_table(awkward, clip_s, skip=too_slow)
    assert [(clip.file, clip.offset_s) for clip in clips] == [(place.path.name, place.start / RATE) for place in table]
    assert len({clip.file for clip in clips}) > 20
    for i in reversed(range(len(table))):
        waveform = load_clip(table[i])
        assert waveform.shape == clips[i].waveform.shape == (round(clip_s * RATE),)
        assert waveform.isfinite().all() and waveform.abs().max() <= 1
        torch.testing.assert_close(waveform, clips[i].waveform, rtol=0, atol=1e-5, msg=str(table[i]))


def test_a_file_that_opens_but_cannot_seek_is_read_from_its_start(tmp_path, monkeypatch):
    def seek(*_):
        raise sf.LibsndfileError(39)

    write(tmp_path / "a" / "x.flac", noise(3, 44100), 44100, "PCM_16")
    manifest = scan_quietly(tmp_path / "a")
    monkeypatch.setattr(sf.SoundFile, "seek", seek)
    clips, table = list(iter_clips(manifest, 0.5)), clip_table(manifest, 0.5)
    for clip, place in zip(clips, table, strict=True):
        torch.testing.assert_close(load_clip(place), clip.waveform, rtol=0, atol=1e-5)


@pytest.mark.real_audio
def test_reading_in_blocks_changes_nothing(awkward_audio):
    names = ["derived_mp3_16k_mono.mp3", "mono_16k_speech_vorbis.ogg", "derived_quiet.flac", "derived_u8.wav"]
    for name in names:
        np.testing.assert_allclose(read_audio(awkward_audio / name), sf.read(awkward_audio / name)[0], atol=1e-6)


@pytest.mark.real_audio
def test_channels_are_averaged(awkward_audio):
    stereo, _ = sf.read(awkward_audio / "derived_left_only.wav", dtype="float32")
    np.testing.assert_allclose(read_audio(awkward_audio / "derived_left_only.wav"), stereo[:, 0] / 2, atol=1e-6)


@pytest.mark.real_audio
def test_beyond_full_scale_is_saturated_and_dc_is_kept(awkward_audio, awkward):
    peaks = {file.path: file.peak for file in awkward.files}
    assert peaks["derived_float32.wav"] > 1 and read_audio(awkward_audio / "derived_float32.wav").abs().max() <= 1
    assert read_audio(awkward_audio / "derived_dc_offset.flac").mean() == pytest.approx(0.4, abs=0.01)


# --- resampling


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 22050, 44100, 48000, 96000])
def test_streamed_resampling_equals_torchaudio_on_the_whole_file(tmp_path, rate):
    wave = noise(23.4567, rate)  # two and a half blocks
    path = write(tmp_path / "noise.wav", wave, rate)
    whole = resample(torch.from_numpy(wave[:, 0]), rate, RATE, **files._QUALITY).clamp(-1, 1)
    torch.testing.assert_close(read_audio(path), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rate", [11000, 44099, 48024])
def test_odd_rates_keep_pitch_and_length(tmp_path, rate):
    wave = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate)
    sound = read_audio(write(tmp_path / "tone.wav", wave, rate))
    assert len(sound) == pytest.approx(2 * RATE, rel=6e-4)
    spectrum = np.abs(np.fft.rfft(sound.numpy() * np.hanning(len(sound))))
    assert spectrum.argmax() * RATE / len(sound) == pytest.approx(1000, abs=1)


def test_resampling_leaves_no_alias(tmp_path):
    wave = 0.5 * np.sin(2 * np.pi * 9000 * np.arange(44100) / 44100)  # above the 8 kHz that 16 kHz can hold
    assert read_audio(write(tmp_path / "tone.wav", wave, 44100))[1000:-1000].abs().max() < 1e-4


# --- clips


def test_clips_lie_end_to_end_and_the_rest_is_left_out(tmp_path):
    wave = noise(3.3)
    write(tmp_path / "a" / "x.wav", wave)
    clips = list(iter_clips(scan_quietly(tmp_path / "a"), 1.0))
    assert [clip.offset_s for clip in clips] == [0, 1, 2]
    np.testing.assert_array_equal(torch.cat([clip.waveform for clip in clips]), wave[: 3 * RATE, 0])


def test_short_files_are_padded_and_very_short_ones_rejected(tmp_path):
    short = noise(0.5)
    write(tmp_path / "a" / "half.wav", short)
    write(tmp_path / "a" / "patch.wav", noise(0.04))
    write(tmp_path / "a" / "less.wav", noise(0.039))
    manifest = scan_quietly(tmp_path / "a")
    half, patch = iter_clips(manifest, 1.28)
    np.testing.assert_array_equal(half.waveform, np.pad(short[:, 0], (0, round(0.78 * RATE))))
    assert patch.file == "patch.wav" and dict(manifest.rejected).keys() == {"less.wav"}
    assert dict(scan_quietly(tmp_path / "a", min_s=0.2).rejected).keys() == {"less.wav", "patch.wav"}


def test_silent_clips_are_left_out_and_counted(tmp_path):
    wave = noise(4.0)
    wave[round(0.9 * RATE) : round(3.1 * RATE)] = 0.5e-4  # below -80 dB of full scale from 0.9 to 3.1 s
    write(tmp_path / "a" / "x.wav", wave)
    manifest, report = scan_quietly(tmp_path / "a"), Report()
    assert [clip.offset_s for clip in iter_clips(manifest, 1.0, report)] == [0, 3]
    assert report.counts == {("x.wav", "silent clip"): 2} and "2 times" in report.summary()
    assert [place.start for place in clip_table(manifest, 1.0)] == [0, 3 * RATE]
    louder = scan_quietly(tmp_path / "a", silence_db=-90)
    assert len(clip_table(louder, 1.0)) == 4


RUN_LENGTHS = st.one_of(st.sampled_from([639, 640, 641]), st.integers(1, 2000))


@given(st.lists(st.tuples(st.booleans(), RUN_LENGTHS), max_size=8), st.integers(1, 3000))
def test_silent_stretches_do_not_depend_on_blocks(runs, block):
    wave = np.concatenate([np.full(n, float(loud), np.float32) for loud, n in runs] or [np.zeros(0, np.float32)])
    n, silent = files._survey([wave[i : i + block] for i in range(0, len(wave), block)], 0.5)
    quiet = np.concatenate([[False], wave < 0.5, [False]])
    starts, stops = np.flatnonzero(~quiet[:-1] & quiet[1:]), np.flatnonzero(quiet[:-1] & ~quiet[1:])
    assert n == len(wave)
    assert list(silent) == [(a, b) for a, b in zip(starts, stops, strict=True) if b - a >= 640]


def test_streaming_takes_constant_memory(tmp_path):
    def peak(seconds):
        with sf.SoundFile(tmp_path / f"{seconds}.wav", "w", 44100, 2, subtype="PCM_16") as file:
            for k in range(seconds):
                file.write(noise(1, 44100, 2, seed=k))
        manifest = scan(tmp_path, [tmp_path / f"{seconds}.wav"], cache_dir=tmp_path / "cache", progress=False)
        tracemalloc.start()
        n = sum(1 for _ in iter_clips(manifest, 1.28))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n == math.floor(seconds / 1.28)
        return used

    peak(30)  # what is made once
    assert peak(120) < 1.2 * peak(40) < 64 * 2**20


def test_a_bad_clip_length_or_threshold_is_refused(tmp_path):
    write(tmp_path / "a" / "x.wav", noise(1))
    with pytest.raises(ValueError, match=r"clip_s 0\.01"):
        list(iter_clips(scan_quietly(tmp_path / "a"), 0.01))
    with pytest.raises(ValueError, match=r"min_s 0\.01"):
        scan_quietly(tmp_path / "a", min_s=0.01)


def test_files_that_change_after_the_scan_are_reported_not_fatal(tmp_path):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "a" / f"{name}.wav", noise(2))
    manifest, report = scan_quietly(tmp_path / "a"), Report()
    (tmp_path / "a" / "a.wav").unlink()
    write(tmp_path / "a" / "b.wav", noise(1))
    write(tmp_path / "a" / "c.wav", np.where(np.arange(2 * RATE) == 20_000, np.nan, noise(2)[:, 0]))
    clips = [clip.file for clip in iter_clips(manifest, 1.0, report)]
    assert clips == ["b.wav", "d.wav", "d.wav"]
    assert {path for path, _ in report.counts} == {"a.wav", "b.wav", "c.wav"}
    places = {(place.path.name, place.start): place for place in clip_table(manifest, 1.0)}
    for key, reason in {
        ("a.wav", 0): "cannot be opened",
        ("b.wav", RATE): "gave 0 samples",
        ("c.wav", RATE): "NaN",
    }.items():
        with pytest.raises(AudioError, match=reason):
            load_clip(places[key])


# --- scanning


def test_a_second_scan_decodes_only_what_changed(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    write(folder / "x.wav", noise(1))
    write(folder / "deep" / "er" / "y.flac", noise(1), subtype="PCM_16")
    (folder / "bad.wav").write_text("no sound")
    decoded = []
    inspect = files._inspect
    monkeypatch.setattr(files, "_inspect", lambda path, *rest: decoded.append(path.name) or inspect(path, *rest))
    first = scan_quietly(folder)
    assert sorted(decoded) == ["bad.wav", "x.wav", "y.flac"]
    assert scan_quietly(folder) == first and len(decoded) == 3
    write(folder / "x.wav", noise(2))
    assert scan_quietly(folder).hours > first.hours and decoded[3:] == ["x.wav"]
    next((tmp_path / "cache").iterdir()).write_text('{"x.wav": [3, ')
    assert len(scan_quietly(folder).files) == 2 and len(decoded) == 7


def test_an_interrupted_scan_keeps_what_it_found(tmp_path, monkeypatch):
    for k in range(3):
        write(tmp_path / "a" / f"{k}.wav", noise(0.1))
    inspect = files._inspect

    def interrupt(path, *rest):
        if path.name == "1.wav":
            raise KeyboardInterrupt
        return inspect(path, *rest)

    monkeypatch.setattr(files, "_inspect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scan_quietly(tmp_path / "a")
    cache = next((tmp_path / "cache").iterdir())
    assert "0.wav" in json.loads(cache.read_text())


def test_what_a_scan_passes_over(tmp_path):
    write(tmp_path / "a" / "x.WAV", noise(1))
    write(tmp_path / "a" / ".hidden" / "y.wav", noise(1))
    write(tmp_path / "a" / "._x.wav", noise(1))
    (tmp_path / "a" / "labels.json").write_text("{}")
    (tmp_path / "a" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    manifest = scan_quietly(tmp_path / "a")
    assert [file.path for file in manifest.files] == ["x.WAV"]
    assert [(r.path, "cannot be opened" in r.reason) for r in manifest.rejected] == [("gone.wav", True)]


def test_digest_is_of_content_names_not_of_the_place(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "x.wav", noise(1))
        write(tmp_path / name / "y.wav", noise(1))
    a, b = scan_quietly(tmp_path / "a"), scan_quietly(tmp_path / "b")
    assert a.digest == b.digest and len(a.digest) == 64
    assert scan_quietly(tmp_path / "a", files=[tmp_path / "a" / "x.wav"]).digest != a.digest
    write(tmp_path / "b" / "y.wav", noise(2))
    assert scan_quietly(tmp_path / "b").digest != a.digest


def test_threads_find_the_same(tmp_path):
    for k in range(6):
        write(tmp_path / "a" / f"{k}.wav", noise(0.3, 44100, seed=k), 44100)
    one = scan(tmp_path / "a", cache_dir=tmp_path / "c1", progress=False)
    assert scan(tmp_path / "a", cache_dir=tmp_path / "c2", workers=3, progress=False) == one


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        scan_quietly(tmp_path / "nowhere")
    with pytest.raises(AudioError, match=r"x\.wav: cannot be opened"):
        read_audio(tmp_path / "x.wav")


def test_audio_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "too short")))
    assert (str(error), error.reason) == ("a.wav: too short", "too short")
