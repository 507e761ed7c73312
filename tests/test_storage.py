"""Files that are either whole or not there."""

import os
import subprocess
import sys

import pytest
import torch

from rankscale.storage import write_atomically


def save(content, path):
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.pt"
    save({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save({"step": 2, "bad": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_the_old_file_is_replaced_not_overwritten(tmp_path):
    path = tmp_path / "state.pt"
    save({"step": 1}, path)
    before = path.read_bytes()
    with path.open("rb") as old:
        save({"step": 2}, path)
        assert old.read() == before
    assert torch.load(path, weights_only=True) == {"step": 2}


def test_a_write_killed_before_its_end_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.pt"
    save({"step": 1}, path)
    code = (
        "import os, sys, torch\n"
        "from rankscale.storage import write_atomically\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"  # all is written, nothing is renamed
        "write_atomically(sys.argv[1], lambda path: torch.save({'step': 2}, path))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -9
    assert torch.load(path, weights_only=True) == {"step": 1}
