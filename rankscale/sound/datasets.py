"""Public sets of sound by name: where they come from, under which licence, and how to get them whole and unaltered.

The list is data (`datasets.yaml`). A download goes on where it was interrupted, is compared with the published hash
before anything in it is opened, and is unpacked beside its place and then moved there: a set is whole or not there.
pooch compares hashes and moves files; it does not resume, so the bytes come through `Resumable`.
"""

from __future__ import annotations

import csv
import errno
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, BinaryIO, Literal
from urllib.parse import urlsplit

import numpy as np
import pooch
import requests
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator
from tqdm import tqdm

from rankscale.sound.files import read_audio
from rankscale.sound.tasks import TRAIN_VALID_TEST, Fold, Split, Task, find_tasks, kfold
from rankscale.storage import hold_lock

FOLDER = Path("runs/data")
TIMEOUT_S = (10, 60)  # to connect, and between two pieces of an answer
PIECE = 2**16  # bytes read at once: at most so many are lost when a connection breaks

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class FetchError(ValueError):
    """A set that could not be fetched: what happened, and what to do."""


# --- the list ---------------------------------------------------------------------------------------------


class Archive(BaseModel):
    """A file to download. bytes and hash ("sha256:..." or "md5:...") are None where nobody publishes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")]
    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    bytes: Annotated[int, Field(gt=0)] | None = None
    hash: Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")] | None = None


class Dataset(BaseModel):
    """One set. kind: plain "audio", or HEAR "tasks". about_mb: its size in words, where exact bytes are not published.

    hash_from: who publishes the hashes. unpack: False for archives that Python cannot read; `then` says how to.
    audio: pattern of the folder with the sound, in the unpacked set. by_hand: what to do where nothing can be fetched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Text
    about: Text
    licence: Text
    source: Annotated[str, StringConstraints(pattern=r"^https://[^\s]+$")]
    citation: Text
    kind: Literal["audio", "tasks"] = "audio"
    note: Text | None = None
    hash_from: Text | None = None
    about_mb: Annotated[float, Field(gt=0)] | None = None
    archives: tuple[Archive, ...] = ()
    audio: Text = "."
    unpack: bool = True
    then: Text | None = None
    by_hand: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> Dataset:
        if bool(self.archives) == bool(self.by_hand):
            raise ValueError(f"{self.name}: give archives to fetch, or by_hand, and not both")
        if any(archive.hash for archive in self.archives) != bool(self.hash_from):
            raise ValueError(f"{self.name}: hashes and hash_from come together")
        if self.unpack == bool(self.then):
            raise ValueError(f"{self.name}: `then` says what to do with archives that are not unpacked")
        return self

    @property
    def bytes(self) -> int | None:
        """Size of the download; a rough one where that is all there is."""
        sizes = [archive.bytes for archive in self.archives]
        if sizes and None not in sizes:
            return sum(sizes)
        return round(self.about_mb * 1e6) if self.about_mb else None

    def size_text(self) -> str:
        if self.by_hand:
            return "by hand"
        exact = all(archive.bytes for archive in self.archives)
        return f"{'' if exact else 'about '}{_amount(self.bytes)}" if self.bytes else "not known"

    def card(self) -> str:
        """All that is known about the set, as text."""
        lines = [self.title, self.about, ""]
        lines += [f"licence   {self.licence}", f"source    {self.source}", f"size      {self.size_text()}"]
        for archive in self.archives:
            lines += [f"file      {archive.url}", f"          {archive.hash or 'hash: none known'}"]
        lines += [f"hashes    by {self.hash_from}"] if self.hash_from else []
        lines += [f"cite      {self.citation}"]
        lines += [f"note      {self.note}"] if self.note else []
        lines += ["", self.by_hand or f"rankscale data fetch {self.name}"]
        lines += [f"rankscale data task {self.name} OUT    # as a HEAR task folder"] if self.name in TASKS else []
        return "\n".join(lines)


def _amount(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"


def read_datasets(path: Path) -> dict[str, Dataset]:
    """A list of sets by name. Raises ValueError on a field that does not fit, and on a name that is there twice."""
    found = TypeAdapter(list[Dataset]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    by_name = {dataset.name: dataset for dataset in found}
    if len(by_name) < len(found):
        raise ValueError(f"{path}: a name is there twice")
    return by_name


@cache
def datasets() -> dict[str, Dataset]:
    """The sets that this project knows, by name."""
    return read_datasets(Path(__file__).with_suffix(".yaml"))


def find_dataset(name: str) -> Dataset:
    """The set of a name. Raises ValueError with the names that are near, or all."""
    known = datasets()
    if name not in known:
        near = [other for other in known if name.lower() in other] or list(known)
        raise ValueError(f"no set is called {name!r}; there are: {', '.join(near)}")
    return known[name]


# --- one file ---------------------------------------------------------------------------------------------


@dataclass
class Resumable:
    """A downloader for pooch: asks only for the bytes that are not in `part` yet, and starts again where it must.

    part: grows while bytes come; moved away when it is complete. archive: what is to come.
    """

    part: Path
    archive: Archive
    progress: bool = True

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Raises FetchError: no connection, an answer that is none, a broken connection, a disk that is too full."""
        del pooch  # how pooch calls a downloader
        have = self.part.stat().st_size if self.part.exists() else 0
        if not have or have != self.archive.bytes:  # else complete, but killed before it was compared
            self._fetch(url, have)
        self._tag.unlink(missing_ok=True)
        self.part.replace(output_file)

    def _fetch(self, url: str, have: int) -> None:
        with self._ask(url, have) as answer:
            if have and answer.status_code == 416:  # no such bytes: what is here cannot be the beginning of it
                self._fetch(url, 0)
                return
            if answer.status_code >= 400:
                raise FetchError(
                    f"{url}: the server answers {answer.status_code} {answer.reason}. It may have moved: see its source"
                )
            if not (have and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
                have = 0  # the whole: the server knows no ranges, or has another file by now
            self._receive(answer, have, url)

    @property
    def _tag(self) -> Path:
        """Holds the server's name for the version that `part` is the beginning of."""
        return self.part.with_name(f"{self.part.name}.etag")

    def _ask(self, url: str, have: int) -> requests.Response:
        headers = {"Accept-Encoding": "identity"}  # else an archive may arrive unpacked, and its hash differ
        if have:
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": self._tag.read_text()} if self._tag.exists() else {}
        try:
            return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise FetchError(
                f"no connection to {urlsplit(url).netloc}: {_reason(error)}. Are you offline? "
                f"A file that you got elsewhere is taken too: put it at {self.part.with_suffix('')}"
            ) from error

    def _receive(self, answer: requests.Response, have: int, url: str) -> None:
        coming = answer.headers.get("Content-Length")
        total = have + int(coming) if coming else self.archive.bytes
        if self.archive.bytes and total != self.archive.bytes:
            raise FetchError(
                f"{url}: the server offers {total} bytes, published are {self.archive.bytes}: it is another file by now"
            )
        check_disk(self.part.parent, (total or 0) - have)
        version = answer.headers.get("ETag", "W/")
        if version.startswith("W/"):  # a weak one, which may not be used in If-Range
            version = answer.headers.get("Last-Modified", "")
        if version:
            self._tag.write_text(version)
        else:
            self._tag.unlink(missing_ok=True)
        bar = tqdm(
            total=total, initial=have, desc=self.archive.file, unit="B", unit_scale=True, disable=not self.progress
        )
        with full_disk(self.part.parent, total), self.part.open("ab" if have else "wb") as file, bar:
            try:
                for piece in answer.iter_content(PIECE):
                    file.write(piece)
                    have += len(piece)
                    bar.update(len(piece))
            except requests.RequestException as error:
                raise FetchError(
                    f"{url}: the connection broke at {_amount(have)} of {_amount(total) if total else 'all'} "
                    f"({_reason(error)}). The same command goes on from there"
                ) from error


def _reason(error: BaseException) -> str:
    """The last thing in a chain of wrapped errors: the one that says something."""
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def check_disk(folder: Path, needed: int) -> None:
    """Raises FetchError where the disk of a folder has less than `needed` bytes free, and says how much and where."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{folder}: {_amount(needed)} are needed on this disk, {_amount(free)} are free. "
            f"Free {_amount(needed - free)}, or choose another folder with --to"
        )


@contextmanager
def full_disk(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turns a disk that fills up in a `with` block into a FetchError: where, and how many bytes are needed there."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = f"{_amount(needed)} in all" if needed else "more than were free"
        raise FetchError(
            f"{folder}: the disk is full ({error.strerror}); {size} are needed there. What has come is kept: "
            "free space and give the same command again, or choose another folder"
        ) from error


def download(archive: Archive, folder: Path, progress: bool = True) -> Path:
    """The file of an archive in a folder, complete and with the published hash. Raises FetchError.

    A file of that name that is there already, from a run before or put there by hand, is compared and used.
    """
    pooch.get_logger().setLevel("WARNING")
    fetcher = Resumable(folder / f"{archive.file}.part", archive, progress)
    try:
        with full_disk(folder, archive.bytes):
            return Path(pooch.retrieve(archive.url, archive.hash, archive.file, folder, downloader=fetcher))
    except FetchError:
        raise
    except ValueError as error:  # pooch's only one: the hash differs, and it has deleted the file
        raise FetchError(
            f"{archive.url}: what came is not what was published: {archive.file} should have {archive.hash} "
            f"({error}). Nothing of it was unpacked. Fetch it again; if that happens twice, its publisher has changed "
            "it, or somebody on the way has"
        ) from error


# --- unpacking --------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, progress: bool = True) -> None:
    """Unpack a tar (however compressed) or zip archive into a folder, and nothing anywhere else.

    Raises FetchError, with the member's name, before a member is written that would lie outside the folder, or that is
    a link or a device: no set here needs links, and Python's own filter for those that lead outside can be deceived in
    versions that are in use. Also where the archive is damaged, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(desc=f"unpacking {archive.name}", unit="file", disable=not progress)
    try:
        with full_disk(folder), bar, archive.open("rb") as file:
            members = _unzip if zipfile.is_zipfile(file) else _untar
            file.seek(0)
            for _ in members(archive, file, folder):
                bar.update()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise FetchError(f"{archive}: damaged, or no archive ({error}). Delete it and fetch it again") from error


def _untar(archive: Path, file: BinaryIO, folder: Path) -> Iterator[None]:
    if not hasattr(tarfile, "data_filter"):
        raise FetchError("this Python cannot unpack safely: use 3.11.4 or later")
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            _refuse(archive, member.name, None if member.isreg() or member.isdir() else "a link or a device")
            tar.extract(member, folder, filter="data")
            tar.members = []  # else it remembers all of them
            yield


def _unzip(archive: Path, file: BinaryIO, folder: Path) -> Iterator[None]:
    with zipfile.ZipFile(file) as zipped:
        members = zipped.infolist()
        for member in members:
            mode = member.external_attr >> 16
            odd = stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
            _refuse(archive, member.filename, "a link or a device" if odd else None)
        check_disk(folder, sum(member.file_size for member in members))
        for member in members:
            zipped.extract(member, folder)
            yield


def _refuse(archive: Path, name: str, fault: str | None) -> None:
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        fault = "an absolute path"
    elif ".." in re.split(r"[/\\]", name):
        fault = "a path that leads upwards"
    if fault:
        raise FetchError(
            f"{archive}: member {name!r} is {fault}. Nothing was written outside {archive.parent}, and the set was not "
            "unpacked: it is not what its publisher should offer; tell them"
        )


# --- a set ------------------------------------------------------------------------------------------------


def fetch(dataset: Dataset, to: Path = FOLDER, progress: bool = True, keep: bool = False) -> Path:
    """Fetch a set, unless it is there, and return its folder: to/NAME.

    While it is incomplete all of it lies in to/NAME.part, which goes when it is complete. keep: leave the archives
    there. Raises FetchError: nothing to fetch, no connection, too small a disk, another hash, an archive with tricks.
    """
    folder, part = to / dataset.name, to / f"{dataset.name}.part"
    if dataset.by_hand:
        raise FetchError(f"{dataset.name} cannot be fetched.\n{dataset.by_hand}")
    with full_disk(to):
        part.mkdir(parents=True, exist_ok=True)
    with hold_lock(to / f"{dataset.name}.lock"):
        if not folder.exists():
            _check_room(dataset, part)
            archives = [download(archive, part, progress) for archive in dataset.archives]
            _settle(dataset, archives, part, folder, progress)
        if not keep:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _check_room(dataset: Dataset, part: Path) -> None:
    """Sound hardly packs, so that a set takes at least the room of its archives once more when it is unpacked."""
    here = sum(path.stat().st_size for path in part.iterdir() if path.is_file())
    if dataset.bytes:
        check_disk(part, dataset.bytes * (1 + dataset.unpack) - here)


def _settle(dataset: Dataset, archives: list[Path], part: Path, folder: Path, progress: bool) -> None:
    """Move what the archives hold, or they themselves, to its place, in one step."""
    if not dataset.unpack:
        part.replace(folder)
        return
    unpacked = part / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    for archive in archives:
        unpack(archive, unpacked, progress)
    unpacked.replace(folder)


def audio_folder(dataset: Dataset, folder: Path) -> Path:
    """Where in a fetched set the sound lies. Raises FetchError if it is not there (never fetched, or not whole)."""
    if not folder.is_dir():
        raise FetchError(f"{folder}: not there; first: rankscale data fetch {dataset.name}")
    if dataset.kind == "tasks":
        tasks = sorted(path.parents[1] for path in folder.rglob("task_metadata.json"))
        return tasks[0] if tasks else folder
    found = sorted(folder.glob(dataset.audio)) if dataset.audio != "." else [folder]
    if not found:
        raise FetchError(f"{folder}: no folder {dataset.audio} in it; delete {folder} and fetch it again")
    return found[0]


def next_steps(dataset: Dataset, folder: Path) -> str:
    """Commands that use a fetched set."""
    if dataset.then:
        return dataset.then
    where = audio_folder(dataset, folder)
    if dataset.kind == "tasks":
        names = " ".join(map(str, find_tasks(where)))
        return f"rankscale place --encoder CHECKPOINT --audio synth --tasks {names or where}"
    lines = [f"rankscale rank --encoder CHECKPOINT --audio {where}", f"rankscale run --corpus {where}"]
    lines += [f"rankscale data task {dataset.name} OUT    # as a HEAR task folder"] if dataset.name in TASKS else []
    return "\n".join(lines)


# --- labelled tasks ---------------------------------------------------------------------------------------


def dataset_task(dataset: Dataset, to: Path = FOLDER) -> Task:
    """A fetched set as a task, with its published folds or splits; clips are read as they are asked for.

    Raises ValueError for a set whose labels are not known here, FetchError where it has not been fetched.
    """
    if dataset.name not in TASKS:
        raise ValueError(f"{dataset.name} is no labelled task here; these are: {', '.join(TASKS)}")
    return TASKS[dataset.name](audio_folder(dataset, to / dataset.name))


def _fsdd(folder: Path) -> Task:
    """DIGIT_SPEAKER_NUMBER.wav: numbers 0 to 4 are the published test set; of the others, 5 to 9 validate here."""
    parts: dict[str, list[tuple[Path, str, str]]] = {"train": [], "valid": [], "test": []}
    for path in sorted(folder.glob("*.wav")):
        digit, _, number = path.stem.split("_")
        split = "test" if int(number) < 5 else "valid" if int(number) < 10 else "train"
        parts[split].append((path, path.stem, digit))
    return _scene("fsdd_digit", "v1.0.10", parts, TRAIN_VALID_TEST)


def _esc50(folder: Path) -> Task:
    """The five published folds, from meta/esc50.csv; fold 1 is called fold00, as HEAR does."""
    parts: dict[str, list[tuple[Path, str, str]]] = {f"fold{k:02d}": [] for k in range(5)}
    with (folder.parent / "meta" / "esc50.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path = folder / row["filename"]
            parts[f"fold{int(row['fold']) - 1:02d}"].append((path, path.stem, row["category"]))
    return _scene("esc50", "v2.0.0", parts, kfold(parts), clip_s=5.0)


def _speech_commands(folder: Path) -> Task:
    """WORD/SPEAKER_nohash_N.wav, split by the published lists: all 35 words, without the background noise."""
    listed = {
        line: split
        for split, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt"))
        for line in (folder / name).read_text(encoding="utf-8").split()
    }
    parts: dict[str, list[tuple[Path, str, str]]] = {"train": [], "valid": [], "test": []}
    for path in sorted(folder.glob("[!_]*/*.wav")):
        word = path.parent.name
        parts[listed.get(f"{word}/{path.name}", "train")].append((path, f"{word}_{path.stem}", word))
    return _scene("speech_commands_35", "v0.02", parts, TRAIN_VALID_TEST)


TASKS = {"fsdd": _fsdd, "esc-50": _esc50, "speech-commands": _speech_commands}


def _scene(
    name: str, version: str, parts: dict[str, list[tuple[Path, str, str]]], folds: tuple[Fold, ...],
    clip_s: float | None = None,
) -> Task:  # fmt: skip
    """A task of one label a clip. parts: split -> (file, name of the clip, label)."""
    if empty := [split for split, clips in parts.items() if not clips]:
        raise FetchError(f"{name}: no clips for {', '.join(empty)}; the set is not whole: delete it and fetch it again")
    vocabulary = tuple(sorted({label for clips in parts.values() for _, _, label in clips}))
    splits = {
        split: Split(
            split,
            np.array([vocabulary.index(label) for _, _, label in clips]),
            lambda clips=clips: (read_audio(path) for path, _, _ in clips),
            tuple(stem for _, stem, _ in clips),
        )
        for split, clips in parts.items()
    }
    return Task(name, version, "scene", "multiclass", vocabulary, splits, folds, clip_s)
