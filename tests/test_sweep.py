"""Sweeps: what a spec means, what it costs, and that runs are made once, whatever is killed, fails or runs beside."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from rankscale import experiment, sweep
from rankscale.budget import budget
from rankscale.cli import main
from rankscale.config import profile
from rankscale.experiment import Places
from rankscale.probe import PROBES
from rankscale.records import RunRecord, provenance, read_record, read_records, record_path, write_record
from rankscale.storage import hold_lock, is_locked
from rankscale.sweep import Spec, carry_out, estimate, labels, limit, measure_rates, plan, read_spec

pytestmark = pytest.mark.xdist_group("sweep")  # one worker: the tests share a cache of clips

SPECS = Path(__file__).parents[1] / "data" / "sweeps"
TINY = """
profile: smoke
shared: {clips: 64, rank_clips: 128, steps: 8, batch: 8, task_clips: 20, tasks: [synth:tempo]}
blocks:
  width: {seeds: [0], grid: {encoder: [en32-1, en64-1]}}
"""


def spec_of(text: str, folder: Path) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Clips, and scores by the features they came from: shared by all tests, so that features that agree are cheap."""
    folder = tmp_path_factory.mktemp("cache")
    run = plan(read_spec(spec_of(TINY, folder)))[0].config
    experiment.prepare(run, folder, progress=False)
    return folder


@pytest.fixture
def make_out(tmp_path, cache):
    """A new folder for runs, with the common cache."""

    def make(name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        (root / "cache").symlink_to(cache)
        return root

    return make


@pytest.fixture
def out(make_out):
    return make_out("runs")


def do(spec: Path, out: Path, executor="in-process", **options) -> tuple[int, str]:
    """Exit status and everything that was said."""
    said = []
    status = carry_out(spec, out, "cpu", executor=executor, say=said.append, **options)
    return status, "\n".join(said)


def results(out: Path) -> dict[str, dict]:
    return {record.hash: record.comparable() for record in read_records(out / "records")}


# --- what to run ------------------------------------------------------------------------------------------


def make_spec(**blocks) -> Spec:
    return Spec.model_validate({"profile": "smoke", "blocks": blocks})


def test_a_block_is_every_combination_and_runs_are_made_once_after_their_floor():
    planned = plan(
        make_spec(
            centre={"seeds": [0, 1]},
            width={"seeds": [0], "grid": {"encoder": ["en32-1", "en64-1"], "lr": [1e-3, 2e-3]}},
        )
    )
    assert len({each.config.hash for each in planned}) == len(planned) == 5 + 3
    centre = next(each for each in planned if each.config == profile("smoke"))
    assert centre.blocks == ("centre", "width")
    seen = set()
    for each in planned:
        assert each.floor is None or each.floor.hash in seen
        seen.add(each.config.hash)
    assert plan(make_spec(centre={"seeds": [0, 1]})) == plan(make_spec(centre={"seeds": [0, 1]}))


def test_first_seeds_come_first_then_blocks_then_cheap_runs():
    planned = plan(make_spec(b={"seeds": [5, 6], "grid": {"steps": [40, 20]}}, a={"seeds": [7]}))
    trained = [each.config for each in planned if each.floor]
    assert [(c.seed, c.steps) for c in trained] == [(5, 20), (5, 40), (7, 12), (6, 20), (6, 40)]


def test_listed_runs_combine_with_grid_and_seeds():
    block = {"seeds": [1, 2], "grid": {"mask_ratio": [0.5, 0.75]}, "runs": [{"steps": 0}, {"encoder": "en64-2"}]}
    configs = [each.config for each in plan(make_spec(b=block))]
    assert len([c for c in configs if c.encoder == "en64-2" and c.steps]) == 4
    assert len([c for c in configs if c.encoder == "en32-1"]) == 2  # without a step the ratio says nothing


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_specs_of_this_repository_can_be_planned(path):
    planned = plan(read_spec(path))
    assert len(planned) == len(set(labels(planned).values()))
    assert planned == plan(read_spec(path))


def test_a_setting_without_a_usual_value_is_always_told():
    spec = Spec(profile="smoke", blocks={"rates": {"grid": {"lr": [0.001, 0.002, 0.004]}}})
    names = labels(plan(spec)).values()
    assert {"lr=0.001", "lr=0.002", "lr=0.004"} <= {part for name in names for part in name.split()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blocks: {a: {seed: [0]}}", r"block a: unknown entry 'seed'; there are seeds, grid, runs"),
        ("block: {a: {}}", r"'blocks' is missing|unknown entry 'block'"),
        ("profile: tiny\nblocks: {a: {}}", r"profile: .*'smoke', 'small' or 'full'.*tiny"),
        ("blocks: {a: {grid: {lr: 0.1}}}", r"block a, grid, lr: .*list.*0\.1"),
        ("blocks: {a: {grid: {lr: []}}}", r"block a, grid, lr: "),
        ("blocks: {a: {seeds: 3}}", r"block a, seeds: .*list"),
        ("blocks: {}", r"blocks: "),
        ("blocks:\n  a: {}\n  a: {}", r"line 3: 'a' stands here twice"),
        ("blocks:\n  a: {seeds: [0}", r"line 2: "),
        ("", r"dictionary|Spec"),
        ("blocks: {a: {grid: {learning_rate: [1]}}}", r"block a: unknown field 'learning_rate'.*fields of a run are"),
        ("blocks: {a: {grid: {step: [1]}}}", r"do you mean steps\?"),
        ("shared: {stepz: 1}\nblocks: {a: {}}", r"shared: unknown field 'stepz'"),
        ("shared: {lr: fast}\nblocks: {a: {}}", r"shared: lr = 'fast': "),
        ("blocks: {wide: {grid: {encoder: [en64]}}}", r"block wide: encoder = 'en64': .*en\{width\}-\{depth\}"),
        ("blocks: {a: {runs: [{encoder: en64-1, heads: 7}]}}", r"block a: .*'heads': 7.*not divisible"),
        ("blocks: {a: {grid: {lr: [0.1]}, runs: [{lr: 0.2}]}}", r"block a: lr is set in grid and in runs"),
        ("blocks: {a: {grid: {seed: [1]}, seeds: [2]}}", r"block a: seed is set in grid and in seeds"),
    ],
)
def test_a_mistake_is_named_with_its_place(text, words, tmp_path):
    path = spec_of(text, tmp_path)
    with pytest.raises(ValueError, match=words) as raised:
        plan(read_spec(path))
    assert "Traceback" not in str(raised.value)
    result = CliRunner().invoke(main, ["sweep", str(path), "--dry-run", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert re.search(words, result.output)


def test_what_failed_is_planned_again_only_if_the_spec_allows_another_attempt():
    spec = make_spec(a={"seeds": [0]})
    run = profile("smoke")
    failed = {run.hash}
    attempts = [each.config.attempt for each in plan(spec, lambda c: c.hash in failed)]
    assert attempts == [0, 0]
    spec = spec.model_copy(update={"attempt": 1})
    assert [each.config.attempt for each in plan(spec, lambda c: c.hash in failed)] == [1, 1]
    assert [each.config.attempt for each in plan(spec)] == [0, 0]
    floor = {run.untrained().hash}
    assert [each.config.attempt for each in plan(spec, lambda c: c.hash in floor)] == [1, 1]


# --- what it will cost ------------------------------------------------------------------------------------


def test_a_dry_run_shows_runs_cost_and_times_it_measured(tmp_path):
    path = SPECS / "smoke.yaml"
    result = CliRunner().invoke(
        main, ["sweep", str(path), "--dry-run", "--out", str(tmp_path / "runs"), "--workers", "3"]
    )
    assert result.exit_code == 0, result.output
    run = next(each.config for each in plan(read_spec(path)) if each.config.encoder == "en64-2" and each.floor)
    line = next(line for line in result.output.splitlines() if line.startswith("en64-2 mask_ratio=0.5"))
    assert f"{budget(run).train_flop:.1e}" in line
    assert "to do" in line
    assert line.endswith("corners")
    assert "12 runs, 5 of them untrained encoders: 12 to do." in result.output
    assert "timed now (7 runs)" in result.output
    assert "assumed (12 runs)" in result.output
    assert "with 3 workers" in result.output
    assert "0.182 h of synthetic audio" in result.output  # 2 shards
    assert not (tmp_path / "runs" / "records").exists()


def write_timed(config, train_s: float, measure_s: float, folder: Path) -> None:
    """A record that knows nothing but its times."""
    scores = {probe: {} for probe in PROBES}
    made = provenance("cpu", "2026-01-01T00:00:00+00:00", train_s, measure_s)
    record = RunRecord(
        hash=config.hash, config=config, status="ok", budget=budget(config), scores=scores, provenance=made
    )
    write_record(record, folder)


def test_expected_times_come_from_records_of_the_same_shape_and_device(tmp_path):
    spec = read_spec(spec_of(TINY, tmp_path))
    run = profile("smoke", **spec.shared)
    for seed, train_s in ((5, 16.0), (6, 24.0), (7, 32.0)):
        write_timed(run.replace(seed=seed, steps=16), train_s, 3.0, tmp_path / "records")
    planned = plan(spec)
    times = measure_rates(planned, sweep.Shelves(Places(tmp_path), tmp_path / "none"), "cpu").expect(planned)
    assert times[run.hash].train_s == pytest.approx(8 * 24 / 16)
    assert times[run.hash].measure_s == 3.0
    assert (times[run.hash].train_from, times[run.hash].measure_from) == ("records", "records")
    wide = times[run.replace(encoder="en64-1").hash]
    assert (wide.train_from, wide.measure_from) == ("timed now", "records of other encoders")
    assert 0 < wide.train_s < 60


def test_runs_that_branch_are_charged_for_their_new_steps():
    shared = {"schedule": "branch", "warmup_steps": 2, "decay": 0.2}
    spec = Spec.model_validate(
        {"profile": "smoke", "shared": shared, "blocks": {"steps": {"grid": {"steps": [100, 50, 200]}}}}
    )
    planned = plan(spec)
    steps = estimate._new_steps(planned)
    assert [steps[each.config.hash] for each in planned if each.floor] == [50, 100 - 40, 200 - 80]


def test_timing_needs_no_corpus():
    assert 0 < sweep.time_step(profile("smoke", batch=2), "cpu") < 10
    assert sweep.time_synth(profile("smoke"), "cpu") > 1


def test_workers_that_share_a_gpu_probe_side_by_side_but_do_not_train_faster():
    runs = {str(k): sweep.Expected(60.0, "records", 30.0, "records") for k in range(8)}
    rates = sweep.Rates({}, 1e10, {}, 100.0, 1000)
    assert sweep.Estimate(runs, 0.0, rates, sweep.Crew(4, 4)).work_s == 8 * 90 / 4
    assert sweep.Estimate(runs, 0.0, rates, sweep.Crew(8, 8, gpus=1)).work_s == 8 * 60
    assert sweep.Estimate(runs, 0.0, rates, sweep.Crew(100, 8)).work_s == 90
    prepare_s = sweep.Estimate(runs, 3600.0, rates, sweep.Crew(4, 4)).prepare_s
    assert prepare_s == pytest.approx((36 + 1000 * estimate.TASK_CLIP_S) / 4)


# --- a time limit -----------------------------------------------------------------------------------------


def test_what_does_not_fit_is_left_out_from_the_end_and_test_cells_never_are():
    planned = plan(
        make_spec(
            width={"seeds": [0, 1], "grid": {"encoder": ["en32-1", "en64-1"]}},
            test={"seeds": [0], "runs": [{"encoder": "en64-2"}]},
        )
    )
    hashes = {(each.config.encoder, each.config.seed, each.config.steps): each.config.hash for each in planned}
    expected = {key: sweep.Expected(1.0 if name[2] else 0.0, "", 0.0, "") for name, key in hashes.items()}

    def left(seconds: float, expected=expected) -> list[tuple[str, int, int]]:
        def cost(kept):
            return sum(expected[each.config.hash].total_s for each in kept if each.config.hash in expected)

        out = sweep.prune(planned, expected, seconds, cost)
        return [(each.config.encoder, each.config.seed, each.config.steps) for each in out]

    assert left(5) == []
    assert left(4) == [("en64-1", 1, 0), ("en64-1", 1, 12)]  # with its floor, that nothing else needs
    assert left(2) == [(name, seed, k) for name, seed in (("en64-1", 0), ("en32-1", 1), ("en64-1", 1)) for k in (0, 12)]
    assert len(left(1)) == len([each for each in planned if "test" not in each.blocks]) == 8
    recorded = {key: each for key, each in expected.items() if key != hashes["en64-1", 1, 12]}
    assert ("en64-1", 1, 12) not in left(1, recorded)  # it has a record and costs nothing

    endless = expected | {
        hashes[name]: sweep.Expected(99.0, "", 0.0, "") for name in (("en32-1", 0, 12), ("en64-2", 0, 12))
    }
    assert left(3, endless) == [("en32-1", 0, 0), ("en32-1", 0, 12)]  # and the others need not suffer for the test cell


def test_the_time_is_up_when_there_is_just_enough_left_to_end_in():
    with pytest.raises(ValueError, match="a time limit of 10 s: give at least 30 s"):
        sweep.TimeLimit(10)
    late = sweep.TimeLimit(100, time.monotonic() - 100 + limit.ENDING_S + 0.05)
    with pytest.raises(limit.OutOfTime), late.enforced():
        time.sleep(60)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert not issubclass(limit.OutOfTime, Exception)  # a run that is stopped must not become a failed run


LIMITED = TINY + "  test: {seeds: [0], runs: [{encoder: en64-1, mask_ratio: 0.5}]}\n"


def test_a_sweep_with_a_time_limit_says_what_it_leaves_out_and_what_it_does_not_begin(out, tmp_path):
    path = spec_of(LIMITED, tmp_path)
    runs = {(c.encoder, c.mask_ratio): c for c in (each.config for each in plan(read_spec(path)) if each.floor)}
    for (encoder, _), run in runs.items():
        write_timed(run.replace(seed=5), 2.0, 3.0 if encoder == "en32-1" else 1000.0, out / "records")
    status, said = do(path, out, time_limit_s=540)
    assert status == 1
    assert re.search(r"so that the others fit into 9 min 00 s: 1 run\. .*\n  en64-1 seed=0  \(width\)", said), said
    assert re.search(r"en64-1 mask_ratio=0.5 seed=0  out of time  would take \d+ min", said), said
    assert re.search(r"^ok +3$", said, re.MULTILINE), said  # en32-1 and two floors, one of them the test cell's
    assert re.search(r"^left out +1  .*with more time", said, re.MULTILINE)
    made = {record.hash for record in read_records(out / "records") if record.config.seed == 0 and record.config.steps}
    assert made == {runs["en32-1", 0.75].hash}


def test_a_sweep_whose_time_is_up_stops_and_can_be_gone_on_with(out, tmp_path, monkeypatch):
    """The first run that starts to train uses up what is left."""
    path = spec_of(TINY, tmp_path)
    make = sweep.Job.make

    def dawdle(job, config):
        if config.steps:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            time.sleep(60)
        make(job, config)

    monkeypatch.setattr(sweep.Job, "make", dawdle)
    status, said = do(path, out, time_limit_s=3600)
    assert status == 1
    assert "The time is up" in said
    assert re.search(r"^not started +[23] ", said, re.MULTILINE), said
    assert not [record for record in read_records(out / "records") if record.status == "failed"]
    monkeypatch.undo()
    assert do(path, out)[0] == 0


def test_settings_that_runs_share_can_be_changed_and_blocks_left_out(tmp_path):
    path = spec_of(LIMITED, tmp_path)
    arguments = ["sweep", str(path), "--dry-run", "--out", str(tmp_path / "runs"), "--set", "tasks=[synth:pitch]"]
    result = CliRunner().invoke(main, [*arguments, "--set", "steps=9", "--without", "width"])
    assert result.exit_code == 0, result.output
    assert "2 runs, 1 of them untrained" in result.output
    spec = read_spec(path, {"tasks": ["synth:pitch"], "steps": "9"}, ["width"])
    assert {(each.config.tasks, each.config.steps) for each in plan(spec) if each.floor} == {(("synth:pitch",), 9)}
    for wrong, words in (("wdth", "its blocks are width, test"), ("set", "unknown field 'tsks'.*tasks")):
        more = ["--without", wrong] if wrong != "set" else ["--set", "tsks=synth"]
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 1
        assert re.search(words, result.output)


def test_a_sweep_is_not_for_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start a sweep once"):
        do(spec_of(TINY, tmp_path), tmp_path / "runs")


# --- running ----------------------------------------------------------------------------------------------


def test_processes_give_the_records_of_one_process_and_a_second_sweep_makes_nothing(out, tmp_path, make_out):
    path = spec_of(TINY, tmp_path)
    status, said = do(path, out, "processes", workers=2)
    assert status == 0, said
    assert re.search(r"\[\d/4\]  en64-1 seed=0  ok  RankMe [\d.]+  Q synthetic -?[\d.]+  in [\d.]+ s", said)
    assert re.search(r"^ok +4$", said, re.MULTILINE)
    apart = make_out("apart")
    assert do(path, apart)[0] == 0
    assert results(apart) == results(out)

    before = {path: path.stat().st_mtime_ns for path in out.joinpath("records").iterdir()}
    logs = [path.read_text() for path in out.glob("work/*/log.txt")]
    assert len({re.search(r"process (\d+)", log)[1] for log in logs}) == 4  # a process each: memory is given back
    status, said = do(path, out, "processes", workers=2)
    assert status == 0
    assert "4 ok" in said
    assert {path: path.stat().st_mtime_ns for path in out.joinpath("records").iterdir()} == before


STARTED: list[subprocess.Popen] = []
LONG = TINY.replace("steps: 8", "steps: 200")


# A shell lets what it runs in the background ignore Ctrl-C, and children inherit that; a sweep at a terminal hears it.
LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from rankscale.cli import main
main()
"""


def start(spec: Path, out: Path, *more: str, workers: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", LISTENING, "sweep", str(spec), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--workers", str(workers), "--save-every", "0.02", *more], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:  # the test failed
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_until(ready, process=None, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    return found


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["state"]["step"] if checkpoint.exists() else 0


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_goes_on_to_the_same_records(out, tmp_path, make_out):
    spec = spec_of(LONG.replace("[en32-1, en64-1]", "[en32-1]"), tmp_path)
    run = next(each.config for each in plan(read_spec(spec)) if each.floor)
    checkpoint, lock = Places(out).work(run) / "checkpoint.pt", Places(out).lock(run)

    polite = start(spec, out)
    wait_until(lambda: step_of(checkpoint) > 5, polite)
    os.killpg(polite.pid, signal.SIGINT)  # as a terminal does
    said, _ = polite.communicate(timeout=300)
    assert polite.returncode == 130, said
    assert "the same command goes on" in said
    assert re.search(r"^not started +1", said, re.MULTILINE)
    stopped_at = step_of(checkpoint)
    assert 5 < stopped_at < 200
    assert not is_locked(lock)

    killed = start(spec, out)
    wait_until(lambda: step_of(checkpoint) > stopped_at, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    wait_until(lambda: not is_locked(lock))
    assert stopped_at < step_of(checkpoint) < 200
    assert [record["status"] for record in results(out).values()] == ["ok"]  # of the floor

    status, said = do(spec, out)
    assert status == 0, said
    assert "1 interrupted" in said
    calm = make_out("calm")
    assert do(spec, calm)[0] == 0
    assert results(calm) == results(out)


def test_a_worker_that_is_killed_is_no_failure_and_the_others_go_on(out, tmp_path):
    spec = spec_of(LONG, tmp_path)
    victim = next(each.config for each in plan(read_spec(spec)) if each.floor)
    places = Places(out)

    def kill():
        wait_until(lambda: step_of(places.work(victim) / "checkpoint.pt") > 5)
        os.kill(int(places.lock(victim).read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    status, said = do(spec, out, "processes", workers=1, save_every_s=0.02)
    killer.join()
    assert status == 1
    assert re.search(r"en32-1 seed=0  interrupted  its process was ended by SIGKILL \(out of memory\?\)", said)
    assert re.search(r"^ok +3$", said, re.MULTILINE)
    assert not record_path(places.records, victim).exists()
    status, said = do(spec, out)
    assert status == 0
    assert "1 interrupted" in said


@pytest.mark.slow
def test_of_two_sweeps_side_by_side_one_goes_on_when_the_other_is_killed(out, tmp_path):
    """Each run is made once; the worker of the killed sweep ends with it, and what it was at is gone on with."""
    spec = spec_of(LONG, tmp_path)
    runs = [each.config for each in plan(read_spec(spec))]
    places = Places(out)

    def working() -> list:
        return [c for c in runs if c.steps and step_of(places.work(c) / "checkpoint.pt") > 5]

    sweeps = [start(spec, out) for _ in range(2)]
    wait_until(working, sweeps[0])
    os.kill(sweeps[0].pid, signal.SIGKILL)  # not its workers
    sweeps[0].communicate(timeout=300)
    said, _ = sweeps[1].communicate(timeout=300)
    assert sweeps[1].returncode == 0, said
    assert re.search(r"^ok +4$", said, re.MULTILINE), said
    logs = [(places.work(config) / "log.txt").read_text() for config in runs]
    made = [log.count("--- ") - log.count("another process is at this run") for log in logs]
    assert sorted(made)[:3] == [1, 1, 1]
    assert sum(made) <= 5, logs
    assert len(results(out)) == 4


@pytest.mark.slow
def test_a_ray_worker_that_is_killed_leaves_a_run_to_go_on_with(out, tmp_path, make_out):
    pytest.importorskip("ray")
    spec = spec_of(LONG, tmp_path)
    victim = next(each.config for each in plan(read_spec(spec)) if each.floor)
    places = Places(out)
    process = start(spec, out, "--executor", "ray", workers=2)
    wait_until(lambda: step_of(places.work(victim) / "checkpoint.pt") > 5, process)
    os.kill(int(places.lock(victim).read_text()), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert re.search(r"en32-1 seed=0  interrupted  its Ray worker died", said), said
    assert re.search(r"^ok +3$", said, re.MULTILINE)
    said, _ = start(spec, out, "--executor", "ray", "--save-every", "60", workers=2).communicate(timeout=300)
    assert re.search(r"^ok +4$", said, re.MULTILINE), said
    calm = make_out("calm")
    assert do(spec, calm)[0] == 0
    assert results(calm) == results(out)


# --- failures ---------------------------------------------------------------------------------------------


def damage(config, out: Path) -> None:
    checkpoint = Places(out).work(config) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"no checkpoint")


def test_a_failed_run_is_kept_with_its_reason_and_tried_again_only_on_request(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = spec_of(TINY, tmp_path)
    planned = plan(read_spec(spec))
    bad = next(each.config for each in planned if each.floor)
    damage(bad, out)
    status, said = do(spec, out, "processes", workers=2)
    assert status == 1
    record = read_record(record_path(out / "records", bad))
    assert record.status == "failed"
    assert re.match(r"ValueError: checkpoint\.pt cannot be read as a checkpoint", record.reason)
    assert str(tmp_path) not in record.model_dump_json()
    assert record.reason in said
    assert re.search(r"^ok +3\nfailed +1  kept.*raise `attempt`", said, re.MULTILINE)
    assert "Traceback" in (out / "work" / bad.hash / "log.txt").read_text()

    assert do(spec, out)[0] == 1
    assert read_record(record_path(out / "records", bad)).provenance == record.provenance

    status, said = do(spec_of("attempt: 1\n" + TINY, tmp_path), out, publish_to=tmp_path / "data" / "runs")
    assert status == 0
    assert read_record(record_path(out / "records", bad.replace(attempt=1))).status == "ok"
    assert read_record(record_path(out / "records", bad)) == record
    assert len(list((tmp_path / "data" / "runs").glob("*.json"))) == 4
    assert len(pd.read_csv(tmp_path / "data" / "runs.csv")) == 4


def test_nothing_is_built_on_a_floor_that_failed(out, tmp_path):
    spec = spec_of(TINY, tmp_path)
    planned = plan(read_spec(spec))
    run = next(each for each in planned if each.floor)
    damage(run.floor, out)
    status, said = do(spec, out)
    assert status == 1
    assert re.search(r"en32-1 seed=0  blocked  its untrained encoder failed", said)
    assert not record_path(out / "records", run.config).exists()
    with pytest.raises(ValueError, match=f"its untrained encoder, run {run.floor.hash}, failed"):
        experiment.run(run.config, Places(out), "cpu", progress=False)
    assert do(spec_of("attempt: 1\n" + TINY, tmp_path), out)[0] == 0


def test_published_records_count_as_done_and_serve_as_floors(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = spec_of(TINY.replace("[en32-1, en64-1]", "[en32-1]"), tmp_path)
    arguments = ["sweep", str(spec), "--executor", "in-process", "--device", "cpu", "--publish", "--out"]
    result = CliRunner().invoke(main, [*arguments, str(out)])
    assert result.exit_code == 0, result.output
    assert "published: 2 records in data/runs" in result.output
    published = sorted(path.suffix for path in Path("data/runs").iterdir())
    assert published == [".json", ".json", ".safetensors", ".safetensors"]

    result = CliRunner().invoke(main, [*arguments, "elsewhere"])
    assert result.exit_code == 0
    assert "2 runs, 1 of them untrained encoders: 2 ok." in result.output
    assert not Path("elsewhere/records").exists()

    config = next(each.config for each in plan(read_spec(spec)) if each.floor)
    record_path(Path("data/runs"), config).unlink()
    result = CliRunner().invoke(main, [*arguments, "elsewhere"])
    assert result.exit_code == 0
    assert {path.stem: read_record(path).comparable() for path in Path("data/runs").glob("*.json")} == results(out)


def test_a_folder_that_is_not_there_ends_the_sweep_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = spec_of(TINY.replace("synth:tempo", "nowhere"), tmp_path)
    result = CliRunner().invoke(main, ["sweep", str(spec), "--executor", "in-process"])
    assert result.exit_code == 1
    assert "nowhere: no such folder" in result.output
    assert not list(tmp_path.glob("runs/records/*"))


# --- words and locks --------------------------------------------------------------------------------------


def test_durations_are_for_readers():
    texts = [sweep.duration(s) for s in (0.42, 9.96, 42, 59.7, 190, 3599.6, 7500)]
    assert texts == ["0.4 s", "10 s", "42 s", "1 min 00 s", "3 min 10 s", "1 h 00 min", "2 h 05 min"]


def test_times_are_read_as_people_write_them():
    assert [sweep.seconds(text) for text in ("540", "540s", "9m", "9 min", "1.5h")] == [540, 540, 540, 540, 5400]
    for wrong in ("", "m", "9 minutes", "-3", "1e3"):
        with pytest.raises(ValueError, match="for example 9m"):
            sweep.seconds(wrong)


def test_a_lock_is_seen_by_others_and_names_its_holder(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    with hold_lock(path):
        assert is_locked(path)
        assert path.read_text() == f"{os.getpid()}\n"
    assert not is_locked(path)
