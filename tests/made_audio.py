"""Small sounds in the layout of the shared recordings, for machines that do not have those."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000
Labelled = dict[str, tuple[np.ndarray, list]]  # file stem -> waveform and its labels


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _tone(name: str, f0: float, seconds: float, tilt: float = 1.0, noise: float = 0.02) -> np.ndarray:
    """A decaying harmonic sound; tilt is the fall of its partials (timbre), the name seeds phase and noise."""
    rng, t = _rng(name), np.arange(round(seconds * RATE)) / RATE
    partials = np.arange(1, 6)
    phases = rng.uniform(0, 2 * np.pi, len(partials))
    waves = np.sin(2 * np.pi * f0 * np.outer(partials, t) + phases[:, None])
    wave = (partials[:, None] ** -tilt * waves).sum(axis=0) * np.exp(-2 * t)
    return (0.2 * rng.uniform(0.7, 1.3) * wave + noise * rng.standard_normal(len(t))).clip(-1, 1)


# --- HEAR task folders ------------------------------------------------------------------------------------


def make_real_audio(root: Path) -> Path:
    """Six HEAR task folders, named and split as the shared ones: fewer clips, each about a second or less."""
    folds = [f"fold{k:02d}" for k in range(5)]
    classes = [
        "baby_cry",
        "chainsaw",
        "clock_tick",
        "dog_bark",
        "fire",
        "helicopter",
        "rain",
        "rooster",
        "sea",
        "sneeze",
    ]
    speakers = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    esc10 = {
        f: _clips(classes, 2, f"{f[-1]}-{{i}}-{{label}}", lambda n, k: _tone(n, 100 * 1.4**k, 1.0, 0.3, 0.1))
        for f in folds
    }
    sizes = {"train": 4, "valid": 2, "test": 2}
    digits = {
        s: _clips([*"0123456789"], size, f"{{label}}_{s}_{{i}}", lambda n, k: _tone(n, 90 + 25 * k, 0.5))
        for s, size in sizes.items()
    }
    voices = {
        f: _clips(
            speakers,
            2,
            f"{f[-1]}_{{label}}_{{i}}",
            lambda n, k: _tone(n, 110, _rng(n).uniform(0.2, 0.7), 0.4 + 0.3 * k),
        )
        for f in folds
    }
    shots = {s: {f"FP{s}-{i}": _shots(f"{s}{i}") for i in range(size + 2)} for s, size in sizes.items()}
    _write_task(root, "esc10", classes, esc10, 1.0)
    _write_task(root, "fsdd_digit", [*"0123456789"], digits, 0.5)
    _write_task(root, "fsdd_speaker", speakers, voices, None)
    _write_task(root, "gunshot_onset", ["gunshot"], shots, 2.0, kind="event")
    _write_notes(root)
    return root


def _clips(labels: list[str], per_label: int, stem: str, sound: Callable[[str, int], np.ndarray]) -> Labelled:
    names = [(stem.format(i=i, label=label), k) for k, label in enumerate(labels) for i in range(per_label)]
    return {name: (sound(name, k), [labels[k]]) for name, k in names}


def _shots(name: str) -> tuple[np.ndarray, list]:
    rng = _rng(name)
    wave, events = 0.005 * rng.standard_normal(2 * RATE), []
    for start_ms in (300.0, 1100.0 + float(rng.integers(200))):
        at = round(start_ms * RATE / 1000)
        wave[at : at + 1600] += 0.5 * rng.standard_normal(1600) * np.exp(-np.arange(1600) / 300)
        events.append({"label": "gunshot", "start": start_ms, "end": start_ms + 100})
    return wave.clip(-1, 1), events


def _write_notes(root: Path) -> None:
    """Two tasks over the same recordings, split by pitch in one and by instrument in the other."""
    instruments = ["alto_sax", "cello", "double_bass", "guitar", "harp", "piano", "tuba", "viola", "zither"]
    pitches = ["C", "Cs", "D", "Ds", "E", "F", "Fs", "G", "Gs", "A", "As", "B"]
    notes = {(i, p): f"{instruments[i]}-{60 + p}" for i in range(9) for p in range(12)}
    sounds = {(i, p): _tone(name, 261.6 * 2 ** (p / 12), 0.6, 0.2 + 0.25 * i) for (i, p), name in notes.items()}
    by_pitch = {
        f"fold{k:02d}": {notes[i, p]: (sounds[i, p], [instruments[i]]) for i, p in notes if (60 + p) % 5 == k}
        for k in range(5)
    }
    by_instrument = {
        f"fold{k:02d}": {notes[i, p]: (sounds[i, p], [pitches[p]]) for i, p in notes if i % 4 == k} for k in range(4)
    }
    _write_task(root, "notes_instrument", instruments, by_pitch, 0.6)
    _write_task(root, "notes_pitchclass", pitches, by_instrument, 0.6)


def _write_task(
    root: Path, name: str, labels: list[str], splits: dict[str, Labelled], seconds: float | None, kind="scene"
) -> None:
    """By hand, not with rankscale's own writer, so that its reader is not tested against itself."""
    folder = root / f"{name}-v1.0-full"
    for split, clips in splits.items():
        (folder / "16000" / split).mkdir(parents=True)
        for stem, (wave, _) in clips.items():
            _write_flac(folder / "16000" / split / f"{stem}.flac", wave)
        (folder / f"{split}.json").write_text(json.dumps({f"{stem}.flac": label for stem, (_, label) in clips.items()}))
    with (folder / "labelvocabulary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("idx", "label"), *enumerate(labels)])
    metadata = {
        "task_name": name, "version": "v1.0", "embedding_type": kind, "sample_duration": seconds,
        "prediction_type": "multilabel" if kind == "event" else "multiclass", "splits": list(splits),
        "split_mode": "trainvaltest" if "train" in splits else "presplit_kfold",
    }  # fmt: skip
    if "train" not in splits:
        metadata["nfolds"] = len(splits)
    (folder / "task_metadata.json").write_text(json.dumps(metadata))


def _write_flac(path: Path, wave: np.ndarray) -> None:
    """Through memory: soundfile waits for the disk after each file."""
    memory = io.BytesIO()
    sf.write(memory, wave, RATE, format="FLAC", subtype="PCM_16")
    path.write_bytes(memory.getvalue())


# --- awkward files ----------------------------------------------------------------------------------------


def make_awkward_audio(root: Path) -> Path:
    """Odd and broken files, named as the shared ones where they are alike, and their manifest.json."""
    root.mkdir(parents=True, exist_ok=True)
    second = _tone("awkward", 220, 1.0)
    stereo = np.stack([second, 0.5 * second], axis=1)
    long = np.concatenate([_tone(f"long{k}", 110 + 10 * k, 1.0) for k in range(12)])
    many = np.tile(stereo, (6, 1))
    six = np.tile(second[:, None], 6)
    written = {
        "derived_0_samples.wav": (second[:0], RATE, "PCM_16"),
        "derived_1_samples.wav": (second[:1], RATE, "PCM_16"),
        "derived_100_samples.wav": (second[:100], RATE, "PCM_16"),
        "derived_400_samples.wav": (second[:400], RATE, "PCM_16"),
        "derived_512_samples.wav": (second[:512], RATE, "PCM_16"),
        "derived_24bit.flac": (many, 44100, "PCM_24"),
        "derived_6ch_48k.wav": (six, 48000, "PCM_16"),
        "derived_96k.flac": (stereo, 96000, "PCM_24"),
        "derived_antiphase.wav": (second[:, None] * [1, -1], RATE, "PCM_16"),
        "derived_clipped.flac": ((30 * second).clip(-1, 1), RATE, "PCM_16"),
        "derived_dc_offset.flac": (second / 2 + 0.4, RATE, "PCM_16"),
        "derived_float32.wav": (8 * stereo, 44100, "FLOAT"),
        "derived_float64.wav": (stereo, 44100, "DOUBLE"),
        "derived_left_only.wav": (stereo * [1, 0], RATE, "PCM_16"),
        "derived_mp3_16k_mono.mp3": (long, RATE, "MPEG_LAYER_III"),
        "derived_mp3_44k1_stereo.mp3": (many, 44100, "MPEG_LAYER_III"),
        "derived_mulaw.wav": (second, RATE, "ULAW"),
        "derived_quiet.flac": (second / 1000, RATE, "PCM_16"),
        "derived_silence_1s.flac": (0 * second, RATE, "PCM_16"),
        "derived_u8.wav": (second, RATE, "PCM_U8"),
        "mono_16k_speech_vorbis.ogg": (long, RATE, "VORBIS"),
        "mono_44k1_24bit.wav": (long, 44100, "PCM_24"),
        "mono_8k_16bit.wav": (second[:3457], 8000, "PCM_16"),
        "stereo_44k1_vorbis.ogg": (many, 44100, "VORBIS"),
        "stereo_48k_opus.ogg": (stereo, 48000, "OPUS"),
        "tinytag_gsm_6_10.wav": (second, 8000, "GSM610"),
        "tinytag_test.aiff": (stereo[:0], 44100, "PCM_16"),
        "whole.aiff": (stereo, 22050, "PCM_16"),
    }
    for name, (wave, rate, subtype) in written.items():
        sf.write(root / name, wave, rate, subtype=subtype)
    spoiled = second.copy()
    spoiled[5000:5010], spoiled[7000] = np.nan, np.inf
    sf.write(root / "derived_nan_inf.wav", spoiled, RATE, subtype="FLOAT")
    _break_files(root)
    manifest = {"files": [_describe(path) for path in sorted(root.iterdir())]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def _break_files(root: Path) -> None:
    for source, broken, share in [
        ("mono_44k1_24bit.wav", "broken_truncated.wav", 0.4),
        ("derived_24bit.flac", "broken_truncated.flac", 0.5),
        ("stereo_44k1_vorbis.ogg", "broken_truncated.ogg", 0.5),
        ("derived_mp3_44k1_stereo.mp3", "broken_truncated.mp3", 0.5),
    ]:
        whole = (root / source).read_bytes()
        (root / broken).write_bytes(whole[: round(share * len(whole))])
    flac = bytearray((root / "derived_24bit.flac").read_bytes())
    middle = len(flac) // 2
    flac[middle : middle + 64] = bytes(byte ^ 0xFF for byte in flac[middle : middle + 64])
    (root / "broken_corrupt_frames.flac").write_bytes(flac)
    (root / "broken_header_only.wav").write_bytes((root / "mono_44k1_24bit.wav").read_bytes()[:44])
    (root / "broken_zero_bytes.wav").write_bytes(b"")
    (root / "broken_text.wav").write_text("this is no sound\n" * 20)
    (root / "tinytag_incomplete.mp3").write_bytes(b"ID3")
    (root / "derived_aac.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(range(256)) * 4)


def _describe(path: Path) -> dict:
    """What python-soundfile makes of a file, read in one go."""
    entry = {"file": path.name, "bytes": path.stat().st_size}
    try:
        with sf.SoundFile(path) as sound:
            entry |= {"samplerate": sound.samplerate, "channels": sound.channels, "header_frames": sound.frames}
            entry |= {"format": sound.format, "subtype": sound.subtype}
            wave = sound.read(sound.frames, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        return entry | {"read_frames": None, "peak": None, "soundfile": f"error: {error}"}
    peak = float(np.abs(wave[np.isfinite(wave)]).max()) if len(wave) else None
    short = len(wave) < entry["header_frames"]
    return entry | {"read_frames": len(wave), "peak": peak, "soundfile": "short read" if short else "ok"}
