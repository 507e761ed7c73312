"""One run on two processes is the run that one process makes, and survives being killed."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rankscale import experiment
from rankscale.config import RunConfig, profile
from rankscale.distributed import ALONE, Team, join_team
from rankscale.experiment import Places
from rankscale.pretrain import pretrain
from rankscale.records import RunRecord, read_record, record_path

# Nine clips a step: two processes cannot share them evenly.
SETTINGS = {"steps": 40, "batch": 9, "clips": 64, "rank_clips": 128, "task_clips": 20, "tasks": "synth:tempo"}
CONFIG = profile("smoke", **SETTINGS)
RUN = ["run", "--profile", "smoke", "--device", "cpu", "--workers", "1"]
RUN += [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]


# --- a team -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(64, 2), (9, 2), (7, 3), (4, 4)])
def test_parts_make_up_the_batch_and_weights_its_mean(n, size):
    team = [Team(rank, size) for rank in range(size)]
    values = torch.randn(n, dtype=torch.float64)
    parts = [values[each.part(n)] for each in team]
    assert torch.equal(torch.cat(parts), values)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    weighed = [each.weigh(part.mean(), n) for each, part in zip(team, parts, strict=True)]
    assert torch.stack(weighed).mean().item() == pytest.approx(values.mean().item())


def test_a_batch_without_a_clip_for_everybody_is_refused_before_training(tmp_path):
    built = experiment.build_corpus(CONFIG, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"a batch of 9 for 10 processes.*start fewer"):
        pretrain(CONFIG, built, tmp_path / "work", "cpu", team=Team(0, 10))


def test_a_process_alone_is_a_team_that_costs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = torch.nn.Linear(2, 2)
    with join_team("cpu") as team:
        assert team == ALONE
        assert team.leads
        assert team.share(model) is model
        assert team.part(5) == slice(0, 5)
        assert team.leader_first(lambda: 3) == team.on_leader(lambda: 3) == 3
        assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="process 98 of this machine has no GPU"), join_team("cuda"):
        pass


# --- a run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[RunRecord, Path]:
    """The record that one process makes, and its cache."""
    places = Places(tmp_path_factory.mktemp("alone"))
    return experiment.run(CONFIG, places, "cpu", progress=False), places.cache


def agree(one, other, path="record") -> None:
    """Numbers to a tolerance, scores within a test clip or two; all else exactly."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for name in one:
            agree(one[name], other[name], f"{path}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for k, pair in enumerate(zip(one, other, strict=True)):
            agree(*pair, f"{path}[{k}]")
    elif isinstance(one, float) and not re.match(r"record\.(scores|quality|floors|floor_quality)", path):
        assert math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4), f"{path}: {one} and {other}"
    elif isinstance(one, float):
        assert abs(one - other) < 0.2, f"{path}: {one} and {other}"
    else:
        assert one == other, path


def check(places: Places, expected: RunRecord) -> None:
    record = read_record(record_path(places.records, CONFIG))
    agree(record.comparable(), expected.comparable())
    points = list(zip(record.history, expected.history, strict=True))
    assert len(points) > 2
    for point, other in points:
        assert point.heldout_loss == pytest.approx(other.heldout_loss, rel=1e-5)
    for point, other in points[1:]:
        assert point.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert point.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert record.provenance.processes == 2
    assert read_record(record_path(places.records, CONFIG.untrained())).provenance.processes == 1


@pytest.fixture
def places(tmp_path, alone) -> Places:
    """A new folder for runs, with the cache of the other one."""
    tmp_path.joinpath("cache").symlink_to(alone[1])
    return Places(tmp_path)


@pytest.mark.slow
def test_two_processes_make_the_run_that_one_makes(places, alone):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "rankscale.cli"]
    done = subprocess.run([*command, *RUN, "--out", str(places.root)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("record:") == 1
    assert set(re.findall(r"en32-1: .*?\| (\d+)/40 ", done.stderr)) >= {"40"}
    check(places, alone[0])
    assert not (places.work(CONFIG) / "checkpoint.pt").exists()


def start_pair(places: Places) -> list[subprocess.Popen]:
    """What torchrun does, without torchrun: it would end the second process for us when the first is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "rankscale.cli", *RUN, "--out", str(places.root), "--save-every", "0.01"]
    return [
        subprocess.Popen(
            command, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in ("0", "1")
    ]  # fmt: skip


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["state"]["step"] if checkpoint.exists() else 0


@pytest.mark.slow
def test_a_pair_whose_leader_is_killed_goes_on_where_it_stopped(places, alone):
    checkpoint = places.work(CONFIG) / "checkpoint.pt"
    pair = start_pair(places)
    try:
        deadline = time.monotonic() + 300
        while step_of(checkpoint) < 5:
            assert time.monotonic() < deadline, "waited in vain"
            assert pair[0].poll() is None, pair[0].stdout.read()
            time.sleep(0.002)
        pair[0].send_signal(signal.SIGKILL)
        said, _ = pair[1].communicate(timeout=300)
        assert pair[1].returncode != 0, said  # it saw that the other one was gone
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    killed_at = step_of(checkpoint)
    assert 5 <= killed_at < 40, "the run finished before it could be killed: make it longer"
    assert not record_path(places.records, CONFIG).exists()

    said = [process.communicate(timeout=300)[0] for process in start_pair(places)]
    assert "record:" in said[0]
    assert said[1] == ""  # the other one is silent
    check(places, alone[0])


def test_processes_are_not_part_of_the_configuration():
    assert not {"processes", "compiled", "team"} & RunConfig.model_fields.keys()
