"""Check that this machine can hold the project, before anything is installed (standard library only).

Runs on Python 3.6 too, so that a Python that is too old says so in words.
"""

import shutil
import sys
from pathlib import Path

NEED_PYTHON = (3, 11)
NEED_GB = 7.5  # the environment with PyTorch takes about 6 GB, pip's downloads pass through the same disk
HELP_PYTHON = "install one (Debian, Ubuntu: sudo apt install python3.11 python3.11-venv; others: python.org)"


def find_problems(folder, version=None, free_gb=None, has_module=None):
    """Reasons, in words, why the environment cannot be installed in `folder`; an empty list if it can."""
    version = tuple(version or sys.version_info[:2])
    free_gb = shutil.disk_usage(folder).free / 1e9 if free_gb is None else free_gb
    has_module = has_module or _can_import
    problems = []
    if version < NEED_PYTHON:
        problems.append(
            f"Python {NEED_PYTHON[0]}.{NEED_PYTHON[1]} or later is needed, {sys.executable} is "
            f"{version[0]}.{version[1]}: {HELP_PYTHON}, then run: make PYTHON=/path/to/python3.11 ..."
        )
    elif not (has_module("venv") and has_module("ensurepip")):
        problems.append(
            "Python's venv module is missing or incomplete: sudo apt install python3-venv (or python{}.{}-venv)".format(
                *version
            )
        )
    if free_gb < NEED_GB:
        problems.append(
            f"{NEED_GB} GB of free disk are needed for the environment in {folder}, only {free_gb:.1f} GB found: "
            "free some space, or clone the repository on a larger disk"
        )
    return problems


def _can_import(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def main():
    folder = str(Path(__file__).resolve().parent.parent)
    problems = find_problems(folder)
    for problem in problems:
        sys.stderr.write("missing: " + problem + "\n")
    if not problems:
        print(f"Python {sys.version_info[0]}.{sys.version_info[1]}, venv and disk: all there.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
