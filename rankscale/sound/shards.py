"""Sound in tar shards, for corpora that are too large to prepare: written once, streamed in constant memory.

A shard is a WebDataset: a plain tar file whose members `KEY.flac` and `KEY.json` are one recording, or a piece of one.
Other people's shards are read as well, with whatever libsndfile reads, at any rate, stereo or mono.

The order. Each epoch takes the shards in an order of its own and goes through them in windows of WINDOW shards, whose
clips are shuffled together. The seed and a clip's position in the run say which clip it is, without a buffer that has
to be filled: a killed run goes on with exactly the clips that it would have had, and pays only for the tables of one
window, whatever the step; every process takes its part of a batch, and any number of workers gives the same batches.
`webdataset`'s own pipelines keep their position in buffers and iterators that cannot be asked where they are, so that
they start anew after a kill; their format is used here, and their reader is not.

Memory. Held are the name and the number of clips of every shard, the tables (where each recording lies) of the TABLES
shards used last, the shuffled numbers of a few windows, and what did not decode. Sound is read clip by clip, from its
place in the tar file. So with sound that decodes only the names grow with the corpus, by less than a kilobyte a shard:
10,000 hours in shards of 256 MB are about 4,500 of them. A tar file must lie where one can seek, on a disk or a mounted
file system, not behind a pipe.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
from braceexpand import braceexpand
from torch import Tensor
from tqdm import tqdm

from rankscale.config import SAMPLE_RATE, stream_of
from rankscale.sound import files
from rankscale.sound.files import MIN_S, SILENCE_DB, SUFFIXES, AudioError, AudioFile, Manifest, Place, Rejected
from rankscale.storage import write_atomically

WINDOW = 8  # shards whose clips are shuffled together
TABLES = 64  # of shards, kept in memory, with 32 bytes a recording
HELD_OUT = 32  # shards at most that no run trains on: one in ten, chosen by the hashes of their names
PIECE_S = 30.0  # longer files are cut: a reader by stream holds a whole member in memory
SHARD_MB = 256.0  # of 16-bit sound; FLAC makes it less
SEEKABLE = ("FLAC", "WAV", "WAVEX", "AIFF")  # where a frame number means the same to everybody
_TABLE_VERSION = 1  # raise when a table finds other facts than before


# --- reading ----------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Where the recordings of a shard lie: rows (offset and bytes in the tar file, samples at 16 kHz, seekable)."""

    rows: np.ndarray
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, eq=False)
class Shards:
    """Clips of one length in tar shards, by number: those of the first shard, of the second, and so on.

    counts: clips of each shard, of which only so many are used. cache: where tables are kept.
    """

    paths: tuple[str, ...]
    counts: np.ndarray
    clip_samples: int
    cache: Path

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def ends(self) -> np.ndarray:
        """The number behind each shard's last clip."""
        return np.cumsum(self.counts)

    @property
    def starts(self) -> np.ndarray:
        """The number of each shard's first clip."""
        return self.ends - self.counts

    def clip(self, number: int) -> tuple[Tensor, list[Rejected]]:
        """The clip of a number (sample,), and why others were passed over to find it.

        In place of one that is silent or does not decode, the next one of its shard that is good: the same one always.
        Raises ValueError where a shard has none.
        """
        shard = int(np.searchsorted(self.ends, number, side="right"))
        path, count = Path(self.paths[shard]), int(self.counts[shard])
        table = read_table(path, self.cache)
        ends = np.cumsum(_clips_of(table.rows[:, 2], self.clip_samples))
        first, left_out = number - int(self.ends[shard]) + count, []
        for place in range(first, first + count):
            row = int(np.searchsorted(ends, place % count, side="right"))
            start = (place % count - (ends[row - 1] if row else 0)) * self.clip_samples
            try:
                return _read_clip(path, table.rows[row], int(start), self.clip_samples), left_out
            except AudioError as error:
                left_out.append(Rejected(str(error.path), error.reason))
        raise ValueError(f"{path}: none of its {count} clips can be used, the last because: {left_out[-1].reason}")


def _clips_of(samples: np.ndarray, length: int) -> np.ndarray:
    """Clips in recordings of so many samples: end to end, and one, padded, in a recording that is shorter."""
    return np.maximum(1, samples // length)


def _read_clip(path: Path, row: np.ndarray, start: int, length: int) -> Tensor:
    offset, size, samples, seekable = map(int, row)
    with path.open("rb") as tar:
        tar.seek(offset)
        content = io.BytesIO(tar.read(size))
    there = min(length, samples)
    place = Place(path / f"byte {offset}", start, there, length - there, bool(seekable))
    clip = files.load_clip(place, content)
    if clip.abs().max() < 10 ** (SILENCE_DB / 20):
        raise AudioError(place.path, "silent clip")
    return clip


def find_shards(entries: Sequence[str]) -> list[str]:
    """The tar files that corpus entries such as "shards:DIR/*.tar" or "shards:DIR/{000..127}.tar" name, sorted.

    Raises ValueError where a pattern names no file.
    """
    found: list[str] = []
    for entry in entries:
        pattern = entry.removeprefix(stream_of(entry))
        paths = [path for part in braceexpand(pattern) for path in _glob(part) or [part]]
        if missing := [path for path in paths if not Path(path).is_file()]:
            raise ValueError(
                f"{entry}: no file {missing[0]}; name tar shards by a pattern such as 'shards:DIR/*.tar', in quotes; "
                "`rankscale data shard` writes them"
            )
        found += paths
    return sorted(found)


def _glob(pattern: str) -> list[str]:
    root = Path(pattern).anchor
    return sorted(map(str, Path(root).glob(pattern.removeprefix(root))))


def open_shards(
    entries: Sequence[str], clip_s: float, clips: int, cache: Path, progress: bool = True
) -> tuple[Shards, Shards]:
    """At most `clips` clips to train on, from shards in a fixed random order, and the clips of the shards held out.

    Tables are made where they are missing: each member's header is read once. Raises ValueError on fewer than two
    shards, on a shard that is no tar file, and where there is no clip.
    """
    length, paths = round(clip_s * SAMPLE_RATE), find_shards(entries)
    if len(paths) < 2:
        raise ValueError(f"{', '.join(entries)}: one shard; at least two are needed, since one is held out")
    paths.sort(key=lambda path: hashlib.sha256(Path(path).name.encode()).digest())
    n_held = min(HELD_OUT, max(1, len(paths) // 10))
    bar = tqdm(paths, "tables of shards", unit="shard", disable=not progress)
    counts = np.array([_clips_of(read_table(Path(path), cache).rows[:, 2], length).sum() for path in bar])
    held_out = Shards(tuple(paths[:n_held]), counts[:n_held], length, cache)
    before = np.cumsum(counts[n_held:]) - counts[n_held:]
    used = np.clip(clips - before, 0, counts[n_held:])
    train = Shards(tuple(paths[n_held:][: np.count_nonzero(used)]), used[used > 0], length, cache)
    if not len(train) or len(held_out) < 2:
        raise ValueError(f"{', '.join(entries)}: {len(train)} clips to train on, {len(held_out)} held out: too few")
    return train, held_out


def digest(shards: Sequence[Shards]) -> str:
    """sha256 of the shards' names and sizes: identifies the content in records, without where it lies."""
    paths = sorted(Path(path) for part in shards for path in part.paths)
    return hashlib.sha256("".join(f"{path.name}\0{path.stat().st_size}\n" for path in paths).encode()).hexdigest()


@lru_cache(maxsize=TABLES)
def read_table(path: Path, cache: Path) -> Table:
    """The table of a shard, from the cache where it is current. Raises ValueError if the file is no tar file."""
    real = path.resolve()
    at = real.stat()
    key = f"{real}\0{at.st_size}\0{at.st_mtime_ns}\0{_TABLE_VERSION}".encode("utf-8", "surrogateescape")
    kept = cache / "shards" / f"{hashlib.sha256(key).hexdigest()[:24]}.json"
    if not kept.exists():
        rows, rejected = _make_table(path)
        for name, reason in rejected:
            logging.getLogger(__name__).warning("%s: %s: %s", path, name, reason)
        write_atomically(kept, lambda new: new.write_text(json.dumps({"rows": rows, "rejected": rejected})))
    found = json.loads(kept.read_text())
    return Table(np.array(found["rows"], np.int64).reshape(-1, 4), tuple(Rejected(*each) for each in found["rejected"]))


def _make_table(path: Path) -> tuple[list[list[int]], list[Rejected]]:
    rows, rejected = [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # else it remembers all of them
                if member.isreg() and Path(member.name).suffix.lower() in SUFFIXES:
                    try:
                        rows.append([member.offset_data, member.size, *_header(tar.extractfile(member))])
                    except AudioError as error:
                        rejected.append(Rejected(member.name, error.reason))
    except tarfile.TarError as error:
        if not rows:
            raise ValueError(f"{path}: no tar file, or a compressed one ({error})") from error
        rejected.append(Rejected(path.name, f"ends early ({error}): what comes before is used"))
    return rows, rejected


def _header(content) -> tuple[int, int]:
    """(samples at 16 kHz, whether one can seek), from the head of a recording."""
    try:
        with sf.SoundFile(content) as sound:
            samples = -(-sound.frames * SAMPLE_RATE // sound.samplerate)
            seekable = sound.format in SEEKABLE
    except sf.LibsndfileError as error:
        raise AudioError(
            "", f"not an audio file that libsndfile can read ({error.error_string.rstrip('.')})"
        ) from error
    if samples < MIN_S * SAMPLE_RATE:
        raise AudioError("", f"too short: {samples / SAMPLE_RATE:.4f} s, the least is {MIN_S} s")
    return samples, int(seekable)


# --- the order --------------------------------------------------------------------------------------------


def draw(shards: Shards, positions: np.ndarray, seed: int, resampled: bool = False) -> np.ndarray:
    """Numbers of the clips at positions of a run (0 for the very first): a pure function of its arguments.

    Every epoch has every clip once. resampled: clips drawn with replacement instead, so that no epoch ends; windows of
    shards are drawn by their number of clips, and clips in them alike.
    """
    find = _resampled_at if resampled else _epoch_at
    return np.array([find(shards, int(position), seed) for position in positions])


def _epoch_at(shards: Shards, position: int, seed: int) -> int:
    epoch, place = divmod(position, len(shards))
    ends = _windows(shards, seed, epoch)[1]
    window = int(np.searchsorted(ends, place, side="right"))
    return int(_window(shards, seed, epoch, window)[place - (ends[window - 1] if window else 0)])


@lru_cache(maxsize=4)
def _windows(shards: Shards, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The epoch's order of shards, and where each window of it ends, in clips."""
    order = np.random.default_rng((seed, epoch)).permutation(len(shards.paths))
    sizes = np.add.reduceat(shards.counts[order], np.arange(0, len(order), WINDOW))
    return order, np.cumsum(sizes)


@lru_cache(maxsize=4)
def _window(shards: Shards, seed: int, epoch: int, window: int) -> np.ndarray:
    """Numbers of the clips of a window, shuffled."""
    chosen = _windows(shards, seed, epoch)[0][window * WINDOW : (window + 1) * WINDOW]
    starts = shards.starts
    numbers = np.concatenate([starts[shard] + np.arange(shards.counts[shard]) for shard in chosen])
    return np.random.default_rng((seed, epoch, window)).permutation(numbers)


def _resampled_at(shards: Shards, position: int, seed: int) -> int:
    size = max(1, WINDOW * len(shards) // len(shards.paths))
    window, place = divmod(position, size)
    return int(_resampled_window(shards, seed, window, size)[place])


@lru_cache(maxsize=4)
def _resampled_window(shards: Shards, seed: int, window: int, size: int) -> np.ndarray:
    """Numbers of `size` clips of WINDOW shards, all drawn with replacement."""
    random = np.random.default_rng((seed, 1, window))
    chosen = random.choice(len(shards.paths), WINDOW, p=shards.counts / len(shards))[random.integers(WINDOW, size=size)]
    return shards.starts[chosen] + random.integers(shards.counts[chosen])


# --- writing ----------------------------------------------------------------------------------------------


def write_shards(
    manifest: Manifest,
    out: Path,
    shard_mb: float = SHARD_MB,
    piece_s: float = PIECE_S,
    workers: int = 1,
    progress: bool = True,
) -> list[Rejected]:
    """Write the files of a manifest as shards out/000000.tar, ...: 16 kHz mono 16-bit FLAC, in a fixed random order.

    Files lie in the order of their names' hashes, so that each shard is a sample of all; no file is in two shards.
    Long ones are cut into pieces of `piece_s` seconds, the last less than twice that. Shards that are there are kept:
    an interrupted run goes on. Returns what was left out, the manifest's rejected files first.
    Raises ValueError where `out` holds the shards of other sound or settings, and where all would fit into one shard.
    """
    plan = _plan(manifest, shard_mb)
    _keep_plan(out / "plan.json", manifest, len(plan), shard_mb, piece_s)
    paths = [out / f"{k:06d}.tar" for k in range(len(plan))]
    jobs = [(path, part) for path, part in zip(paths, plan, strict=True) if not path.exists()]
    write = partial(_write_shard, manifest.root, piece_s)
    left_out = list(manifest.rejected)
    bar = partial(tqdm, desc=f"shards of {manifest.root.name}", total=len(jobs), unit="shard", disable=not progress)
    if workers == 1:
        return left_out + [fault for job in bar(jobs) for fault in write(job)]
    single = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **single) as pool:
        try:
            return left_out + [fault for faults in bar(pool.map(write, jobs)) for fault in faults]
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it ends only when all jobs are done
            raise


def _plan(manifest: Manifest, shard_mb: float) -> list[list[AudioFile]]:
    """Which files lie in which shard: decided by sizes that are known before anything is encoded."""
    by_hash = sorted(manifest.files, key=lambda file: hashlib.sha256(os.fsencode(file.path)).digest())
    plan, room = [], 0.0
    for file in by_hash:
        if not plan or room < 2 * file.samples:
            plan.append([])
            room = shard_mb * 1e6
        plan[-1].append(file)
        room -= 2 * file.samples
    if len(plan) < 2:
        held = sum(2 * file.samples for file in manifest.files) / 1e6
        raise ValueError(
            f"{manifest.root}: {len(manifest.files)} usable files, {held:.1f} MB of 16-bit sound: too little for two "
            f"shards of {shard_mb:g} MB, and training holds one shard in ten out. Choose a smaller --shard-mb"
        )
    return plan


def _keep_plan(path: Path, manifest: Manifest, n: int, shard_mb: float, piece_s: float) -> None:
    plan = {"version": 1, "digest": manifest.digest, "shards": n, "shard_mb": shard_mb, "piece_s": piece_s}
    if not path.exists():
        write_atomically(path, lambda new: new.write_text(json.dumps(plan, indent=1) + "\n"))
    elif (there := json.loads(path.read_text())) != plan:
        differ = ", ".join(name for name in plan if there.get(name) != plan[name])
        raise ValueError(f"{path.parent} holds shards of other sound or settings ({differ}); choose another folder")


def _write_shard(root: Path, piece_s: float, job: tuple[Path, list[AudioFile]]) -> list[Rejected]:
    """Returns the files that no longer decode as they did when they were scanned."""
    path, part = job
    left_out: list[Rejected] = []

    def write(new: Path) -> None:
        with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as tar:
            for k, file in enumerate(part):
                try:
                    _add_file(tar, f"{path.stem}-{k:06d}", root / file.path, file.path, piece_s)
                except AudioError as error:
                    left_out.append(Rejected(file.path, error.reason))

    write_atomically(path, write)
    return left_out


def _add_file(tar: tarfile.TarFile, key: str, path: Path, name: str, piece_s: float) -> None:
    for k, piece in enumerate(_pieces(files.iter_audio(path), round(piece_s * SAMPLE_RATE))):
        content = io.BytesIO()
        sf.write(content, piece, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        about = {"file": name, "offset_s": k * piece_s, "samples": len(piece)}
        _add_member(tar, f"{key}-{k:04d}.flac", content.getvalue())
        _add_member(tar, f"{key}-{k:04d}.json", json.dumps(about).encode())


def _pieces(blocks: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Sound in pieces of one length, the last one with the rest: none is so short that it would need padding."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= 2 * length:
            yield held[:length]
            held = held[length:]
    if len(held):
        yield held


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)  # no time or owner: the same sound gives the same bytes
    tar.addfile(member, io.BytesIO(content))
