"""Folders of audio files -> 16 kHz mono clips. Bad files are reported, never fatal.

Rules, the same everywhere in this room:

* Channels are averaged. Where they cancel (antiphase) the mean is silence, and the reason says so.
* Samples beyond +-1 (float files, codec overshoot) are saturated at +-1, as a 16-bit file would be; levels, DC
  offsets and clipping are otherwise left as they are.
* A file with a NaN or infinite sample is rejected whole: whatever wrote it cannot be trusted elsewhere in it.
* A file that ends early or stops decoding keeps the sound before that point, and is remarked on.
* A file shorter than `min_s` is rejected. A file shorter than a clip is zero-padded to one clip. Clips of a
  longer file lie end to end from its start; the rest that does not fill a clip is left out.
* A clip whose peak is below `silence_db` is silent and is left out; a file that is silent throughout is rejected.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile as sf
import torch
from torch import Tensor
from torchaudio.transforms import Resample
from tqdm import tqdm

from rankscale.config import SAMPLE_RATE
from rankscale.storage import write_atomically

SUFFIXES = {
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd",
    ".caf", ".w64", ".rf64", ".voc", ".nist", ".sph",
}  # fmt: skip
UNREADABLE_SUFFIXES = {".m4a", ".aac", ".mp4", ".wma", ".amr", ".webm", ".mka", ".ape", ".wv"}  # only reported
MIN_S = 0.04  # one patch
SILENCE_DB = -80.0  # dB below full scale: three steps of a 16-bit file, so dither and codec dust count as silence

_SCAN_VERSION = 1  # raise when a scan finds other facts than before
_READ_FRAMES = 4096  # a decoder that fails loses at most this much of what came before
_BLOCK_S = 10
_OGG_TAIL_S = 8  # libsndfile lands up to a window off when it seeks into the last page of an Ogg file
_QUALITY = {  # torchaudio's "kaiser best"
    "resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596, "beta": 14.769656459379492,
}  # fmt: skip


class AudioError(ValueError):
    """A file that gives no usable sound: `path`, and the `reason` in plain words."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


# --- one file ---------------------------------------------------------------------------------------------


class _Forward(sf.SoundFile):
    """Reads on without the seek that soundfile adds after each block, which alters what MP3 decodes to."""

    def seekable(self) -> bool:
        return False


@dataclass
class _Reading:
    """What is learned about a file while it is being decoded."""

    path: Path
    sound: sf.SoundFile
    log: str  # what libsndfile noted when it opened the file
    can_seek: bool
    frames: int = 0  # decoded so far
    peak: float = 0.0  # over all channels, before they are averaged
    damage: str = ""

    @property
    def remark(self) -> str:
        """Empty, or how the file falls short of its header. Valid once decoding has ended."""
        frames, sizes = self.sound.frames, re.findall(r"(\d+) \(should be (\d+)\)", self.log)
        if sizes:  # libsndfile corrects a header that promises too many bytes, and logs both sizes
            told, there = map(int, sizes[-1])
            if told > there == 0:
                return f"truncated: header says {told} bytes of sound, none are there"
            if there < told < 0x7FFF_0000:  # above: written to a pipe, by a writer that could not know
                frames = max(frames, round(frames * told / there))
        told_s, read_s = (f"{n / self.sound.samplerate:.2f} s" for n in (frames, self.frames))
        if self.damage:
            return f"damaged: the decoder stopped at {read_s} of {told_s} ({self.damage})"
        return f"truncated: header says {told_s}, read {read_s}" if frames > self.frames else ""

    @property
    def seekable(self) -> bool:
        """Whether a frame number means the same to the decoder as to who counts frames."""
        return self.can_seek and not self.damage and self.frames == self.sound.frames


def _open(path: Path, content: BinaryIO | None = None) -> _Reading:
    """content: the bytes of the file, where they lie in another one; path is then a name for messages."""
    try:
        if (path.stat().st_size if content is None else content.seek(0, io.SEEK_END)) == 0:
            raise AudioError(path, "the file is empty (zero bytes)")
        if content is not None:
            content.seek(0)
        sound = _Forward(path if content is None else content)
        return _Reading(path, sound, sound.extra_info, sf.SoundFile.seekable(sound))
    except sf.LibsndfileError as error:
        why = error.error_string.rstrip(".")
        if "does not exist" in why:  # said of any MP3 without a frame; that it exists was seen above
            why = "no audio found in it"
        hint = "; convert it first, for example with ffmpeg" if path.suffix in UNREADABLE_SUFFIXES else ""
        raise AudioError(path, f"not an audio file that libsndfile can read ({why}){hint}") from error
    except OSError as error:
        raise AudioError(path, f"cannot be opened ({error.strerror})") from error


def _decode(reading: _Reading, frames: float = math.inf) -> Iterator[np.ndarray]:
    """Mono float32 blocks at the file's own rate, from where `reading.sound` stands."""
    while frames > 0:
        try:
            block = reading.sound.read(int(min(_READ_FRAMES, frames)), dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            reading.damage = error.error_string.removeprefix("Error : ").rstrip(".")
            return
        if not len(block):
            return
        if not np.isfinite(block).all():
            at = reading.frames + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise AudioError(reading.path, f"NaN or infinite sample at {at / reading.sound.samplerate:.3f} s")
        reading.frames += len(block)
        reading.peak = max(reading.peak, float(np.abs(block).max()))
        frames -= len(block)
        yield _saturate(block.mean(axis=1, dtype=np.float64))


def _saturate(samples: np.ndarray) -> np.ndarray:
    return np.clip(samples, -1, 1).astype(np.float32)


def _ratio(rate: int, target: int = SAMPLE_RATE) -> tuple[int, int]:
    """(up, down) such that target = rate * up / down.

    A rate such as 44,099 Hz would need a filter of gigabytes, so the denominator is kept to 2000: exact for the
    rates in use, and for others off by 5e-4 at the very worst, 1e-6 as a rule.
    """
    ratio = Fraction(target, rate).limit_denominator(2000)
    return ratio.numerator, ratio.denominator


@lru_cache(maxsize=16)
def _resampler(up: int, down: int) -> tuple[Resample, int]:
    """The filter, and the input samples (whole groups of `down`) that it needs on either side."""
    resample = Resample(down, up, **_QUALITY)
    return resample, (math.ceil(resample.width / down) + 1) * down


def _resample(blocks: Iterable[np.ndarray], rate: int, target: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Blocks at `rate` -> blocks at `target`, as resampling all of them at once would give."""
    up, down = _ratio(rate, target)
    if up == down:
        yield from blocks
        return
    resample, margin = _resampler(up, down)
    held = np.zeros(margin, np.float32)
    n_in = n_out = 0
    for block in itertools.chain(_gather(blocks, rate * _BLOCK_S), [None]):
        n_in += 0 if block is None else len(block)
        held = np.concatenate([held, np.zeros(margin + down, np.float32) if block is None else block])
        groups = (len(held) - 2 * margin) // down  # those with their margin on both sides
        if groups <= 0:
            continue
        part = resample(torch.from_numpy(held[: groups * down + 2 * margin])).numpy()
        part = part[margin // down * up :][: groups * up]
        held = held[groups * down :]
        if block is None:
            part = part[: math.ceil(n_in * up / down) - n_out]
        n_out += len(part)
        yield _saturate(part)


def _gather(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of at least `size` (the last may be shorter)."""
    held: list[np.ndarray] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= size:
            yield np.concatenate(held)
            held = []
    if sum(map(len, held)):
        yield np.concatenate(held)


def _stream(reading: _Reading, rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """A whole file as mono blocks of about ten seconds at `rate`; closes the file at the end."""
    with reading.sound as sound:
        yield from _gather(_resample(_decode(reading), sound.samplerate, rate), rate * _BLOCK_S)


def iter_audio(path: Path | str) -> Iterator[np.ndarray]:
    """What `read_audio` gives, in blocks of about ten seconds: a long file needs no more memory than a short one.

    Blocks (sample,) float32; none where there is no sound. Raises AudioError when it comes to a fault.
    """
    return _stream(_open(Path(path)))


def read_audio(path: Path | str) -> Tensor:
    """A whole file as mono 16 kHz sound.

    Returns (sample,) float32 in [-1, 1], at least one sample; of a file that ends early or stops decoding, what
    is there. Silence is sound here. Raises AudioError where there is none, or a NaN or infinite sample.
    """
    reading = _open(Path(path))
    blocks = list(_stream(reading))
    if not blocks:
        raise AudioError(path, reading.remark or "holds no samples")
    return torch.from_numpy(np.concatenate(blocks))


# --- a folder ---------------------------------------------------------------------------------------------


class Rejected(NamedTuple):
    """A file (path within its folder) that gives no clips, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class AudioFile:
    """What a scan found in one file.

    path: within its folder, with forward slashes. samples: at 16 kHz. peak: of any channel, before averaging and
    saturation. silent: (start, stop) in samples of every stretch of at least MIN_S below the threshold.
    remark: empty, or how the file falls short of its header.
    """

    path: str
    bytes: int
    samples: int
    rate: int
    channels: int
    format: str
    peak: float
    silent: tuple[tuple[int, int], ...] = ()
    seekable: bool = True
    remark: str = ""

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    def is_silent(self, start: int, stop: int) -> bool:
        """Whether every sample of start .. stop is below the threshold of the scan."""
        before = bisect_right(self.silent, (start, math.inf))
        return before > 0 and stop <= self.silent[before - 1][1]


@dataclass(frozen=True)
class Manifest:
    """The usable audio files of a folder, sorted by path, and the rejected ones with their reasons."""

    root: Path
    files: tuple[AudioFile, ...]
    rejected: tuple[Rejected, ...]

    @property
    def hours(self) -> float:
        return sum(file.seconds for file in self.files) / 3600

    @property
    def digest(self) -> str:
        """sha256 of the files' names and sizes: identifies the content in records, without where it lies."""
        names = "".join(f"{file.path}\0{file.bytes}\n" for file in self.files)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def summary(self, lines: int = 20) -> str:
        """Counts, then at most `lines` rejected files and as many remarks."""
        remarks = [Rejected(file.path, file.remark) for file in self.files if file.remark]
        head = f"{len(self.files)} files, {self.hours:.3f} h of sound, {len(self.rejected)} rejected"
        return "\n".join([head, *_listing("rejected", self.rejected, lines), *_listing("remark", remarks, lines)])


def _listing(title: str, entries: Iterable[Rejected], lines: int) -> list[str]:
    entries = list(entries)
    shown = [f"  {title}: {path}: {reason}" for path, reason in entries[:lines]]
    return [*shown, f"  ... and {len(entries) - lines} more"] if len(entries) > lines else shown


def scan(
    folder: Path | str,
    files: Iterable[Path | str] | None = None,
    cache_dir: Path | str = "runs/cache",
    min_s: float = MIN_S,
    silence_db: float = SILENCE_DB,
    workers: int = 1,
    progress: bool = True,
) -> Manifest:
    """Decode every audio file under a folder once, and list what is usable.

    files: only these (paths that lie in the folder) instead of all; names that begin with a dot are passed over.
    cache_dir: where findings are kept; a file is decoded again when its size or time of change differ.
    workers: threads. Raises FileNotFoundError if there is no such folder, ValueError on a file outside it; bad
    files raise nothing and end in `Manifest.rejected`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; name a folder of audio files")
    if min_s < MIN_S:
        raise ValueError(f"min_s {min_s}: at least {MIN_S} s, one patch")
    names = _audio_names(root) if files is None else [Path(f).relative_to(root).as_posix() for f in files]
    findings = _find(
        root, sorted(set(names)), _cache_path(root, Path(cache_dir), silence_db), silence_db, workers, progress
    )

    usable, rejected = [], []
    for name, finding in findings.items():
        reason = finding if isinstance(finding, str) else _fault(finding, min_s, silence_db)
        if reason:
            rejected.append(Rejected(name, reason))
        else:
            usable.append(finding)
    return Manifest(root, tuple(usable), tuple(rejected))


def _audio_names(root: Path) -> list[str]:
    paths = (path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    wanted = SUFFIXES | UNREADABLE_SUFFIXES
    return [p.as_posix() for p in paths if p.suffix.lower() in wanted and not any(s[0] == "." for s in p.parts)]


def _fault(file: AudioFile, min_s: float, silence_db: float) -> str:
    """Why a decoded file gives no clips; empty if it does."""
    if not file.samples:
        return file.remark or "holds no samples"
    if file.seconds < min_s:
        return f"too short: {file.seconds:.4f} s, the least is {min_s} s" + (file.remark and f"; {file.remark}")
    if file.is_silent(0, file.samples):
        if not file.peak:
            return "silent: every sample is zero"
        peak_db = 20 * math.log10(file.peak)
        if peak_db >= silence_db:
            return f"silent: its channels cancel (peak {peak_db:.1f} dBFS in a channel, their mean is silence)"
        return f"silent: peak {peak_db:.1f} dBFS, the least is {silence_db:g} dBFS"
    return ""


Finding = AudioFile | str  # what decoding found, or why it could not be decoded


def _find(
    root: Path, names: list[str], cache: Path, silence_db: float, workers: int, progress: bool
) -> dict[str, Finding]:
    """Findings for all names, from the cache where it is current."""
    known = _load_cache(cache)
    stats = {name: _stat(root / name) for name in names}
    missing = [name for name in names if name not in known or known[name][0] != stats[name]]
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = pool.map(lambda name: _inspect(root / name, name, silence_db), missing)
        bar = tqdm(jobs, "scanning", len(missing), unit="file", disable=not (progress and missing))
        for name, finding in zip(missing, bar, strict=True):
            known[name] = (stats[name], finding)
    finally:  # an interrupted scan continues where it stopped
        pool.shutdown(cancel_futures=True)
        if missing:
            _save_cache(cache, known)
    return {name: known[name][1] for name in names}


def _stat(path: Path) -> tuple[int, int]:
    """(size, time of change); (-1, -1) for a dangling link, which _inspect then reports."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _inspect(path: Path, name: str, silence_db: float) -> Finding:
    try:
        reading = _open(path)
        sound = reading.sound
        samples, silent = _survey(_stream(reading), 10 ** (silence_db / 20))
    except AudioError as error:
        return error.reason
    kind = f"{sound.format} {sound.subtype}"
    return AudioFile(
        name, path.stat().st_size, samples, sound.samplerate, sound.channels, kind, reading.peak, silent,
        reading.seekable, reading.remark,
    )  # fmt: skip


def _survey(blocks: Iterable[np.ndarray], threshold: float) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Number of samples, and the (start, stop) of every stretch of at least MIN_S below the threshold."""
    n, last_loud = 0, -1
    silent: list[tuple[int, int]] = []
    shortest = round(MIN_S * SAMPLE_RATE)
    for block in itertools.chain(blocks, [None]):
        loud = np.array([n]) if block is None else n + np.flatnonzero(np.abs(block) >= threshold)
        edges = np.concatenate([[last_loud], loud])
        wide = np.flatnonzero(np.diff(edges) > shortest)
        silent += [(int(edges[i]) + 1, int(edges[i + 1])) for i in wide]
        last_loud = int(edges[-1])
        n += 0 if block is None else len(block)
    return n, tuple(silent)


def _cache_path(root: Path, cache_dir: Path, silence_db: float) -> Path:
    key = f"{root.resolve()}\0{silence_db}\0{_SCAN_VERSION}".encode("utf-8", "surrogateescape")
    return cache_dir / f"scan-{hashlib.sha256(key).hexdigest()[:16]}.json"


def _load_cache(cache: Path) -> dict[str, tuple[tuple[int, int], Finding]]:
    if not cache.exists():
        return {}
    try:
        entries = json.loads(cache.read_text(encoding="ascii"))
        return {name: (tuple(stat), _finding(found)) for name, (stat, found) in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s is damaged (%s): scanning again", cache, error)
        return {}


def _finding(found: dict | str) -> Finding:
    if isinstance(found, str):
        return found
    return AudioFile(**found | {"silent": tuple((start, stop) for start, stop in found["silent"])})


def _save_cache(cache: Path, known: dict[str, tuple[tuple[int, int], Finding]]) -> None:
    entries = {
        name: (stat, found if isinstance(found, str) else asdict(found)) for name, (stat, found) in known.items()
    }
    write_atomically(cache, lambda temporary: temporary.write_text(json.dumps(entries), encoding="ascii"))


# --- clips ------------------------------------------------------------------------------------------------


class Clip(NamedTuple):
    """waveform: (sample,) float32 in [-1, 1]; file: its path within the folder; offset_s: where it begins."""

    waveform: Tensor
    file: str
    offset_s: float


class Place(NamedTuple):
    """Where a clip lies: from sample `start` of a file (at 16 kHz), `samples` long, then `padding` zeros."""

    path: Path
    start: int
    samples: int
    padding: int
    seekable: bool


@dataclass
class Report:
    """Collects what was left out while clips were read: how often, by file and reason."""

    counts: Counter[Rejected] = field(default_factory=Counter)

    def add(self, path: str, reason: str) -> None:
        self.counts[Rejected(path, reason)] += 1

    def summary(self, lines: int = 20) -> str:
        entries = [Rejected(path, f"{reason} ({n} times)") for (path, reason), n in self.counts.most_common()]
        head = f"{self.counts.total()} clips or files left out while reading"
        return "\n".join([head, *_listing("left out", entries, lines)])


def iter_clips(
    manifest: Manifest,
    clip_s: float,
    report: Report | None = None,
    skip: Callable[[AudioFile], bool] | None = None,
    rate: int = SAMPLE_RATE,
) -> Iterator[Clip]:
    """Clips of `clip_s` seconds, file after file, in constant memory, by the rules at the head of this room.

    report: receives silent clips, and files that could not be read as they were when scanned; these end early
    and the next file follows. skip: says which files to pass over. rate: of the waveforms, in Hz, for encoders that
    want another one than the 16 kHz of everything else here.
    """
    report = Report() if report is None else report
    length = _samples_of(clip_s, rate)
    for file in manifest.files:
        if skip is None or not skip(file):
            try:
                yield from _file_clips(manifest.root / file.path, file, length, report, rate)
            except AudioError as error:
                report.add(file.path, error.reason)


def _samples_of(clip_s: float, rate: int = SAMPLE_RATE) -> int:
    length = round(clip_s * rate)
    if length < round(MIN_S * rate):
        raise ValueError(f"clip_s {clip_s}: clips are at least {MIN_S} s, one patch")
    return length


def _file_clips(path: Path, file: AudioFile, length: int, report: Report, rate: int) -> Iterator[Clip]:
    def scanned(samples: int) -> int:  # the scan counts at 16 kHz
        return round(samples * SAMPLE_RATE / rate)

    held, start = np.zeros(0, np.float32), 0
    for block in _stream(_open(path), rate):
        held = np.concatenate([held, block])
        while len(held) >= length:
            clip, held = held[:length], held[length:]
            if file.is_silent(scanned(start), scanned(start + length)):
                report.add(file.path, "silent clip")
            else:
                yield Clip(torch.from_numpy(clip.copy()), file.path, start / rate)
            start += length
    gave = scanned(start + len(held))
    rounding = 0 if rate == SAMPLE_RATE else 2 + file.samples // 1000  # see _ratio
    if abs(gave - file.samples) > rounding:
        raise AudioError(path, f"gave {gave} samples, {file.samples} when it was scanned")
    if start == 0:
        yield Clip(torch.from_numpy(np.pad(held, (0, length - len(held)))), file.path, 0.0)


def clip_table(manifest: Manifest, clip_s: float, skip: Callable[[AudioFile], bool] | None = None) -> list[Place]:
    """The places of the clips that `iter_clips` gives, for reading them in any order with `load_clip`."""
    length = _samples_of(clip_s)
    table = []
    for file in manifest.files:
        if skip is not None and skip(file):
            continue
        path, samples = manifest.root / file.path, min(length, file.samples)
        for start in range(0, file.samples - samples + 1, length):
            if not file.is_silent(start, start + samples):
                table.append(Place(path, start, samples, length - samples, file.seekable))
    return table


def load_clip(place: Place, content: BinaryIO | None = None) -> Tensor:
    """The clip at a place: (samples + padding,) float32, what `iter_clips` gives to about 1e-5.

    content: the bytes of the file, where they lie in another one. Raises AudioError if it does not give that sound.
    """
    try:
        waveform = _read_near(place, content) if place.seekable else _read_up_to(place, content)
    except sf.LibsndfileError:  # some FLAC files open and decode, but cannot seek
        waveform = _read_up_to(place, content)
    if len(waveform) < place.samples:
        raise AudioError(place.path, f"gave {len(waveform)} samples at {place.start}, not {place.samples}")
    return torch.from_numpy(np.pad(waveform, (0, place.padding)))


def _read_near(place: Place, content: BinaryIO | None) -> np.ndarray:
    """Seek to a place and decode it, with the margins that the resampling filter needs."""
    reading = _open(place.path, content)
    with reading.sound as sound:
        up, down = _ratio(sound.samplerate)
        margin = 0 if up == down else _resampler(up, down)[1]
        group = max(0, place.start // up - margin // down)
        first, stop = group * down, math.ceil((place.start + place.samples) / up) * down + margin
        landing = max(0, min(first, sound.frames - _OGG_TAIL_S * sound.samplerate)) if sound.format == "OGG" else first
        sound.seek(landing)
        raw = [*_decode(reading, stop - landing), np.zeros(0, np.float32)]
        blocks = list(_resample([np.concatenate(raw)[first - landing :]], sound.samplerate))
    return np.concatenate(blocks)[place.start - group * up :][: place.samples]


def _read_up_to(place: Place, content: BinaryIO | None) -> np.ndarray:
    """Decode a file from its start to the end of a place: slow, and right whatever the seek table says."""
    stop, n, blocks = place.start + place.samples, 0, [np.zeros(0, np.float32)]
    for block in _stream(_open(place.path, content)):
        blocks.append(block[max(0, place.start - n) : max(0, stop - n)])
        n += len(block)
        if n >= stop:
            break
    return np.concatenate(blocks)
