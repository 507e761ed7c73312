"""Public sets: what is fetched is whole, the published one, and nowhere but in its folder."""

import errno
import hashlib
import io
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from click.testing import CliRunner
from pydantic import ValidationError

from rankscale.cli import main
from rankscale.sound import datasets
from rankscale.sound.datasets import TASKS, Archive, Dataset, FetchError, download, fetch, read_datasets, unpack
from rankscale.sound.tasks import find_tasks, read_task

Usage = namedtuple("Usage", "total used free")
NOISE = np.random.default_rng(0).bytes(300_000)  # a file that does not pack, so that sizes are what they seem
HALF = 2 * datasets.PIECE  # of it, more or less


# --- a server on this machine -----------------------------------------------------------------------------


class Shelf(ThreadingHTTPServer):
    """Files by path; what was asked for; and how it is to behave."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.version = "ETag"
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # (path, Range)
        self.sent = 0
        self.break_after: int | None = None
        self.ranges = True
        self.etag = '"one"'

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        shelf = self.server
        shelf.asked.append((self.path, self.headers["Range"]))
        content = shelf.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        start = 0
        same = self.headers.get("If-Range", shelf.etag) == shelf.etag
        if self.headers["Range"] and shelf.ranges and same:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header(shelf.version, shelf.etag)
        self.end_headers()
        end = len(content) if shelf.break_after is None else min(len(content), start + shelf.break_after)
        shelf.sent += end - start  # first: the test may read it as soon as the last byte is there
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf():
    server = Shelf()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tarred(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def archive_of(shelf: Shelf, content: bytes, name: str = "set.tar.gz", **changes) -> Archive:
    shelf.files[name] = content
    return Archive(**{"url": shelf.url(name), "file": name, "bytes": len(content), "hash": sha256(content)} | changes)


def dataset_of(*archives: Archive, **changes) -> Dataset:
    fields = {"name": "toy", "title": "Toy", "about": "a toy", "licence": "CC0", "source": "https://example.org"}
    fields |= {"citation": "nobody", "archives": archives}
    fields |= {"hash_from": "this test"} if any(archive.hash for archive in archives) else {}
    return Dataset(**fields | changes)


def get(archive: Archive, folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    return download(archive, folder, progress=False).read_bytes()


# --- the list ---------------------------------------------------------------------------------------------


def test_the_list_is_valid_and_every_card_prints():
    known = datasets.datasets()
    wanted = {"fsdd", "esc-50", "speech-commands", "gtzan", "nsynth-train", "crema-d", "fsd50k", "audioset"}
    wanted |= {"librispeech-dev-clean", "librispeech-test-clean", "librispeech-train-clean-100", "hear-esc50"}
    assert wanted <= set(known) and set(TASKS) <= set(known)
    listed = CliRunner().invoke(main, ["data", "list"]).output
    for name, dataset in known.items():
        shown = CliRunner().invoke(main, ["data", "card", name])
        assert shown.exit_code == 0
        for fact in (dataset.title, dataset.licence, dataset.source, dataset.citation, *dataset.archives):
            assert (fact.url if isinstance(fact, Archive) else fact) in shown.output
        assert shown.output.count("none known") == sum(archive.hash is None for archive in dataset.archives)
        assert name in listed
        assert len({archive.file for archive in dataset.archives}) == len(dataset.archives)


def test_hashes_agree_with_those_that_torchaudio_holds():
    from torchaudio.datasets import librispeech, speechcommands

    held = librispeech._CHECKSUMS | speechcommands._CHECKSUMS
    ours = {a.url: a.hash for dataset in datasets.datasets().values() for a in dataset.archives}
    shared = set(held) & set(ours)
    assert len(shared) == 8
    assert {url: f"sha256:{held[url]}" for url in shared} == {url: ours[url] for url in shared}


def test_an_unknown_name_is_answered_with_those_that_are_near():
    result = CliRunner().invoke(main, ["data", "card", "commands"])
    assert result.exit_code == 1
    assert "no set is called 'commands'; there are: speech-commands, hear-speech-commands" in result.output


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"source": "ftp://example.org"}, "source"),
        ({"name": "Toy Set"}, "name"),
        ({"licence": " "}, "licence"),
        ({"colour": "red"}, "colour"),
        ({"archives": ()}, "archives to fetch, or by_hand"),
        ({"by_hand": "buy it"}, "not both"),
        ({"hash_from": None}, "hashes and hash_from"),
        ({"unpack": False}, "then"),
    ],
)
def test_a_set_that_is_not_described_well_is_refused(changes, fault):
    archive = Archive(url="http://example.org/a.zip", file="a.zip", hash="md5:" + "0" * 32)
    assert dataset_of(archive)
    with pytest.raises(ValidationError, match=fault):
        dataset_of(archive, **changes)


@pytest.mark.parametrize("field", [{"hash": "md5:12"}, {"hash": "f" * 64}, {"file": "../a.zip"}, {"url": "a.zip"}])
def test_an_archive_that_is_not_described_well_is_refused(field):
    with pytest.raises(ValidationError, match=next(iter(field))):
        Archive(**{"url": "http://example.org/a.zip", "file": "a.zip"} | field)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    text = Path(datasets.__file__).with_suffix(".yaml").read_text()
    twice = tmp_path / "twice.yaml"
    twice.write_text(text + text[text.index("- name: fsdd") : text.index("- name: esc-50")])
    with pytest.raises(ValueError, match="twice"):
        read_datasets(twice)


# --- one file ---------------------------------------------------------------------------------------------


def test_a_download_is_the_file(shelf, tmp_path):
    assert get(archive_of(shelf, NOISE), tmp_path) == NOISE
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]
    assert get(archive_of(shelf, NOISE), tmp_path) == NOISE
    assert len(shelf.asked) == 1  # the second time it was there


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(shelf, tmp_path):
    archive = archive_of(shelf, NOISE)
    (tmp_path / archive.file).write_bytes(NOISE)
    assert get(archive, tmp_path) == NOISE and shelf.asked == []
    (tmp_path / archive.file).write_bytes(NOISE[1:])
    assert get(archive, tmp_path) == NOISE and len(shelf.asked) == 1


def test_an_interrupted_download_asks_only_for_the_rest(shelf, tmp_path):
    archive = archive_of(shelf, NOISE)
    shelf.break_after = HALF
    with pytest.raises(FetchError, match=r"broke at 0.1 MB of 0.3 MB.*goes on from there"):
        get(archive, tmp_path)
    assert (tmp_path / "set.tar.gz.part").stat().st_size == HALF
    assert not (tmp_path / "set.tar.gz").exists()
    shelf.break_after = None
    assert get(archive, tmp_path) == NOISE
    assert [asked for _, asked in shelf.asked] == [None, f"bytes={HALF}-"]
    assert shelf.sent == len(NOISE)
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


def test_a_download_killed_before_it_was_compared_is_not_asked_for_again(shelf, tmp_path):
    archive = archive_of(shelf, NOISE)
    (tmp_path / "set.tar.gz.part").write_bytes(NOISE)
    assert get(archive, tmp_path) == NOISE and shelf.asked == []


def test_a_server_without_ranges_sends_it_all_again(shelf, tmp_path):
    archive = archive_of(shelf, NOISE)
    shelf.ranges, shelf.break_after = False, HALF
    with pytest.raises(FetchError, match="goes on from there"):
        get(archive, tmp_path)
    shelf.break_after = None
    assert get(archive, tmp_path) == NOISE
    assert shelf.sent == HALF + len(NOISE)


@pytest.mark.parametrize("version", ["ETag", "Last-Modified"])
def test_a_file_that_changed_meanwhile_is_not_glued_to_its_old_beginning(shelf, tmp_path, version):
    shelf.version = version
    archive = archive_of(shelf, NOISE, hash=None, bytes=None)
    shelf.break_after = HALF
    with pytest.raises(FetchError):
        get(archive, tmp_path)
    shelf.break_after, shelf.etag = None, '"two"'
    shelf.files["set.tar.gz"] = NOISE[::-1]
    assert get(archive, tmp_path) == NOISE[::-1]


def test_more_than_there_is_to_come_starts_again(shelf, tmp_path):
    archive = archive_of(shelf, NOISE, bytes=None)
    (tmp_path / "set.tar.gz.part").write_bytes(NOISE + b"more")
    assert get(archive, tmp_path) == NOISE
    assert [asked for _, asked in shelf.asked] == [f"bytes={len(NOISE) + 4}-", None]


@pytest.mark.parametrize("hash_", [sha256(b"another"), "md5:" + hashlib.md5(b"another").hexdigest()])
def test_another_file_than_the_published_one_is_deleted_and_named(shelf, tmp_path, hash_):
    with pytest.raises(FetchError, match=rf"should have {hash_}.*Nothing of it was unpacked. Fetch it again"):
        get(archive_of(shelf, NOISE, hash=hash_), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_the_published_one_is_refused_before_the_download(shelf, tmp_path):
    with pytest.raises(FetchError, match=r"offers 300000 bytes, published are 300001"):
        get(archive_of(shelf, NOISE, bytes=len(NOISE) + 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named_with_its_answer(shelf, tmp_path):
    with pytest.raises(FetchError, match=r"/gone.zip: the server answers 404"):
        get(Archive(url=shelf.url("gone.zip"), file="gone.zip"), tmp_path)


def test_offline_says_so_and_where_a_file_can_be_put(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port on which nobody listens: the connection is refused
        archive = Archive(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/set.tar.gz", file="set.tar.gz")
        with pytest.raises(FetchError, match=r"no connection to 127.0.0.1.*refused.*offline.*put it at .*set.tar.gz$"):
            get(archive, tmp_path)


def test_a_disk_with_too_little_room_is_refused_before_the_download(shelf, tmp_path, monkeypatch):
    archive = archive_of(shelf, NOISE, hash=None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 100_000))
    with pytest.raises(FetchError, match=r"0.3 MB are needed on this disk, 0.1 MB are free. Free 0.2 MB, or .*--to"):
        get(archive, tmp_path)
    with pytest.raises(FetchError, match=r"0.6 MB are needed"):  # and as much again to unpack it
        fetch(dataset_of(archive), tmp_path, progress=False)
    assert shelf.sent <= len(NOISE) and not (tmp_path / "toy").exists()


class FullDisk:
    """A file on a disk that has room for some bytes only."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, piece: bytes) -> int:
        written = self.file.write(piece[: self.room])
        self.room -= written
        if written < len(piece):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_disk_that_fills_up_says_how_much_is_needed_and_the_rest_comes_later(shelf, tmp_path, monkeypatch):
    archive = archive_of(shelf, NOISE)
    opened = Path.open

    def open_on_full_disk(path, mode="r", *rest, **more):
        file = opened(path, mode, *rest, **more)
        return FullDisk(file, HALF) if path.suffix == ".part" else file

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(FetchError, match=r"disk is full \(No space left on device\); 0.3 MB in all.*another folder"):
        get(archive, tmp_path)
    monkeypatch.setattr(Path, "open", opened)
    assert get(archive, tmp_path) == NOISE
    assert shelf.asked[-1][1] == f"bytes={HALF}-"


# --- unpacking --------------------------------------------------------------------------------------------


def tar_with(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return memory.getvalue()


def tar_link(kind: bytes, target: str) -> bytes:
    member = tarfile.TarInfo("innocent.wav")
    member.type, member.linkname = kind, target
    return tar_with(member)


def zip_with(name: str, mode: int = stat.S_IFREG | 0o644) -> bytes:
    memory = io.BytesIO()
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr = name, mode << 16
    with zipfile.ZipFile(memory, "w") as zipped:
        zipped.writestr(info, b"evil")
    return memory.getvalue()


TRICKS = {
    "tar up": (tar_with(tarfile.TarInfo("a/../../evil.wav"), b"evil"), "a/../../evil.wav", "leads upwards"),
    "tar absolute": (tar_with(tarfile.TarInfo("/nowhere/evil.wav"), b"evil"), "/nowhere/evil.wav", "absolute"),
    "tar symlink": (tar_link(tarfile.SYMTYPE, "/etc"), "innocent.wav", "a link"),
    "tar symlink up": (tar_link(tarfile.SYMTYPE, "../../x"), "innocent.wav", "a link"),
    "tar hard link": (tar_link(tarfile.LNKTYPE, "../../secret"), "innocent.wav", "a link"),
    "tar device": (tar_link(tarfile.FIFOTYPE, ""), "innocent.wav", "a link or a device"),
    "zip up": (zip_with("../evil.wav"), "../evil.wav", "leads upwards"),
    "zip up with backslashes": (zip_with("a\\..\\..\\evil.wav"), "evil.wav", "leads upwards"),
    "zip absolute": (zip_with("/nowhere/evil.wav"), "/nowhere/evil.wav", "absolute"),
    "zip drive": (zip_with("C:/evil.wav"), "C:/evil.wav", "absolute"),
    "zip symlink": (zip_with("innocent.wav", stat.S_IFLNK | 0o777), "innocent.wav", "a link"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_members_that_lead_outside_are_refused_by_name_and_nothing_is_written_there(tmp_path, trick):
    content, member, fault = TRICKS[trick]
    inside = tmp_path / "some" / "where"
    inside.mkdir(parents=True)
    (inside / "set").write_bytes(content)
    secret = tmp_path / "secret"
    secret.write_text("kept")
    with pytest.raises(FetchError) as refused:
        unpack(inside / "set", inside / "unpacked", progress=False)
    assert member in str(refused.value).replace("\\\\", "\\") and fault in str(refused.value)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {inside / "set", secret}
    assert secret.read_text() == "kept" and not Path("/nowhere").exists()


def test_a_trick_behind_good_members_leaves_no_half_set(shelf, tmp_path):
    content = tarred({"good.wav": b"sound", "../evil.wav": b"evil"})
    with pytest.raises(FetchError, match="leads upwards"):
        fetch(dataset_of(archive_of(shelf, content)), tmp_path / "data", progress=False)
    assert not (tmp_path / "data" / "toy").exists()
    assert not list(tmp_path.rglob("evil.wav"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_ordinary_archives_unpack_as_they_are(tmp_path, mode):
    members = {"top/a.wav": b"a", "top/under/b.wav": NOISE}
    if mode == "zip":
        with zipfile.ZipFile(tmp_path / "set", "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members.items():
                zipped.writestr(name, content)
    else:
        (tmp_path / "set").write_bytes(tarred(members, mode))
    unpack(tmp_path / "set", tmp_path / "out", progress=False)
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in tmp_path.rglob("*.wav")}
    assert found == members


@pytest.mark.parametrize("content", [b"no archive", tarred({"a.wav": NOISE})[:100_000], b""])
def test_a_damaged_archive_is_named(tmp_path, content):
    (tmp_path / "set").write_bytes(content)
    with pytest.raises(FetchError, match="set: damaged, or no archive"):
        unpack(tmp_path / "set", tmp_path / "out", progress=False)


def test_a_zip_that_is_too_large_unpacked_is_refused_before(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "set", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros.wav", bytes(10**6))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 100_000))
    with pytest.raises(FetchError, match=r"1.0 MB are needed"):
        unpack(tmp_path / "set", tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir())


# --- a set ------------------------------------------------------------------------------------------------


def test_a_set_of_two_archives_is_fetched_once_and_leaves_nothing_else(shelf, tmp_path):
    first = archive_of(shelf, tarred({"toy/a.wav": b"a"}), "a.tar.gz")
    second = archive_of(shelf, tarred({"toy/b.wav": b"b"}), "b.tar.gz")
    dataset = dataset_of(first, second)
    for _ in range(2):
        folder = fetch(dataset, tmp_path, progress=False)
        assert sorted(path.name for path in folder.rglob("*.wav")) == ["a.wav", "b.wav"]
        assert {path.name for path in tmp_path.iterdir()} == {"toy", "toy.lock"}
    assert len(shelf.asked) == 2


def test_a_killed_unpacking_is_done_again_without_another_download(shelf, tmp_path, monkeypatch):
    dataset = dataset_of(archive_of(shelf, tarred({"a.wav": b"a", "b.wav": b"b"})))
    extract = tarfile.TarFile.extract

    def die(tar, member, *rest, **more):
        if member.name == "b.wav":
            raise KeyboardInterrupt
        extract(tar, member, *rest, **more)

    monkeypatch.setattr(tarfile.TarFile, "extract", die)
    with pytest.raises(KeyboardInterrupt):
        fetch(dataset, tmp_path, progress=False)
    assert not (tmp_path / "toy").exists()
    monkeypatch.undo()
    assert {path.name for path in fetch(dataset, tmp_path, progress=False).iterdir()} == {"a.wav", "b.wav"}
    assert len(shelf.asked) == 1


def test_archives_that_python_cannot_read_stay_whole(shelf, tmp_path):
    dataset = dataset_of(archive_of(shelf, NOISE, "toy.z01"), unpack=False, then="zip -s 0")
    folder = fetch(dataset, tmp_path, progress=False)
    assert (folder / "toy.z01").read_bytes() == NOISE
    assert datasets.next_steps(dataset, folder) == "zip -s 0"


def test_the_command_says_where_a_set_lies_and_what_to_do_with_it(shelf, tmp_path, monkeypatch):
    archive = archive_of(shelf, tarred({"toy-1/audio/a.wav": b"a"}))
    monkeypatch.setattr(datasets, "datasets", lambda: {"toy": dataset_of(archive, audio="*/audio")})
    result = CliRunner().invoke(main, ["data", "fetch", "toy", "--to", str(tmp_path), "--quiet"])
    assert result.exit_code == 0
    where = tmp_path / "toy" / "toy-1" / "audio"
    assert f"Toy: {tmp_path / 'toy'}" in result.output and "licence: CC0" in result.output
    assert f"rankscale rank --encoder CHECKPOINT --audio {where}" in result.output


def test_the_command_for_a_hear_task_names_its_folders(shelf, tmp_path, monkeypatch):
    archive = archive_of(shelf, tarred({"tasks/toy-v1-full/task_metadata.json": b"{}"}))
    monkeypatch.setattr(datasets, "datasets", lambda: {"toy": dataset_of(archive, kind="tasks")})
    result = CliRunner().invoke(main, ["data", "fetch", "toy", "--to", str(tmp_path), "--quiet"])
    assert f"--tasks {tmp_path / 'toy' / 'tasks' / 'toy-v1-full'}" in result.output


def test_what_cannot_be_fetched_says_how_to_get_it():
    result = CliRunner().invoke(main, ["data", "fetch", "audioset"])
    assert result.exit_code == 1
    assert "rankscale data shard DIR" in result.output


# --- labelled tasks ---------------------------------------------------------------------------------------


def write_sound(path: Path, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(len(path.name)).uniform(-0.1, 0.1, rate // 10), rate)


def make_fsdd(folder: Path) -> None:
    for digit in (3, 7):
        for number in (0, 4, 5, 9, 10, 49):
            write_sound(folder / "fsdd-1.0" / "recordings" / f"{digit}_theo_{number}.wav")


def make_esc50(folder: Path) -> None:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for category in ("dog", "rain"):
            name = f"{fold}-100-A-{category}.wav"
            rows.append(f"{name},{fold},0,{category},True,100,A")
            write_sound(folder / "ESC-50-master" / "audio" / name, 44_100)
    (folder / "ESC-50-master" / "meta").mkdir()
    (folder / "ESC-50-master" / "meta" / "esc50.csv").write_text("\n".join(rows))


def make_speech_commands(folder: Path) -> None:
    for word in ("bed", "_background_noise_", "cat"):
        for speaker in ("aa", "bb", "cc"):
            write_sound(folder / word / f"{speaker}_nohash_0.wav", 16_000)
    (folder / "validation_list.txt").write_text("bed/bb_nohash_0.wav\ncat/bb_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("bed/cc_nohash_0.wav\ncat/cc_nohash_0.wav\n")


MAKERS = {"fsdd": make_fsdd, "esc-50": make_esc50, "speech-commands": make_speech_commands}
EXPECTED = {  # split -> clip names
    "fsdd": {
        "test": {"3_theo_0", "3_theo_4", "7_theo_0", "7_theo_4"},
        "valid": {"3_theo_5", "3_theo_9", "7_theo_5", "7_theo_9"},
        "train": {"3_theo_10", "3_theo_49", "7_theo_10", "7_theo_49"},
    },
    "esc-50": {f"fold{k:02d}": {f"{k + 1}-100-A-dog", f"{k + 1}-100-A-rain"} for k in range(5)},
    "speech-commands": {
        split: {f"bed_{who}_nohash_0", f"cat_{who}_nohash_0"}
        for split, who in (("train", "aa"), ("valid", "bb"), ("test", "cc"))
    },
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_labelled_set_becomes_a_hear_task_with_its_published_splits(name, tmp_path):
    assert set(MAKERS) == set(TASKS)
    MAKERS[name](tmp_path / "data" / name)
    command = ["data", "task", name, str(tmp_path / "task"), "--to", str(tmp_path / "data")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert find_tasks(tmp_path / "task") == [tmp_path / "task"]
    task = read_task(tmp_path / "task")
    assert {split: set(clips.names) for split, clips in task.splits.items()} == EXPECTED[name]
    assert len(task.vocabulary) == 2
    for split in task.splits.values():
        for stem, label, clip in zip(split.names, split.labels, split.clips(), strict=True):
            assert task.vocabulary[label] in stem
            assert len(clip) == 1600  # 0.1 s at 16 kHz


def test_a_set_that_was_not_fetched_or_is_not_whole_says_so(tmp_path):
    result = CliRunner().invoke(main, ["data", "task", "fsdd", str(tmp_path / "t"), "--to", str(tmp_path)])
    assert result.exit_code == 1 and "first: rankscale data fetch fsdd" in result.output
    (tmp_path / "fsdd" / "fsdd-1.0" / "recordings").mkdir(parents=True)
    result = CliRunner().invoke(main, ["data", "task", "fsdd", str(tmp_path / "t"), "--to", str(tmp_path)])
    assert result.exit_code == 1 and "no clips for train" in result.output
    result = CliRunner().invoke(main, ["data", "task", "gtzan", str(tmp_path / "t")])
    assert result.exit_code == 1 and "fsdd, esc-50, speech-commands" in result.output
