"""Shared fixtures: real recordings where they are at hand, sounds made by the tests where they are not."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its threads: two spinning threads a process are slower

from pathlib import Path

import made_audio
import pytest
import torch

torch.set_num_threads(1)


def real_audio_folder() -> Path | None:
    """RANKSCALE_REAL_AUDIO (empty: none), else ../shared/real_audio beside the repository, if it is there."""
    named = os.environ.get("RANKSCALE_REAL_AUDIO")
    if named is not None:
        if named and not Path(named).is_dir():
            raise pytest.UsageError(f"RANKSCALE_REAL_AUDIO: {named} is no folder; leave it empty to use made sounds")
        return Path(named) if named else None
    beside = Path(__file__).parents[2] / "shared" / "real_audio"
    return beside if beside.is_dir() else None


@pytest.fixture(scope="session")
def real_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of HEAR task folders (esc10, fsdd_digit, fsdd_speaker, gunshot_onset, two of notes). Read only."""
    return real_audio_folder() or made_audio.make_real_audio(tmp_path_factory.mktemp("real_audio"))


@pytest.fixture(scope="session")
def awkward_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of odd and broken audio files with a manifest.json that says what soundfile makes of each. Read only."""
    real = real_audio_folder()
    if real and (real.parent / "awkward_audio").is_dir():
        return real.parent / "awkward_audio"
    return made_audio.make_awkward_audio(tmp_path_factory.mktemp("awkward_audio"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--need-real-audio", action="store_true", help="fail where real recordings are at hand and no test used them"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # so that none is left out of the count
        if {"real_audio", "awkward_audio"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("real_audio")


def _ran_on_real_audio(reporter) -> int:
    reports = [report for group in reporter.stats.values() for report in group]
    return sum(getattr(r, "when", "") == "call" and "real_audio" in getattr(r, "keywords", {}) for r in reports)


def pytest_terminal_summary(terminalreporter) -> None:
    n = _ran_on_real_audio(terminalreporter)
    where = "real recordings" if real_audio_folder() else "sounds made by the tests: ../shared not found or not wanted"
    terminalreporter.write_line(f"real audio: {n} tests ran on {where}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # absent in xdist's workers
    wanted = session.config.getoption("--need-real-audio") and real_audio_folder() and reporter
    if wanted and session.exitstatus == 0 and not _ran_on_real_audio(reporter):
        reporter.write_line("--need-real-audio: the recordings are here, but no test ran on them", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
