"""Check that this machine can hold the project, before anything is installed (standard library only).

Written for old Pythons too, so that a too old one can say so in words.
"""

import os
import shutil
import sys

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
            "Python {}.{} or later is needed, {} is {}.{}: {}, then run: make PYTHON=/path/to/python3.11 ...".format(
                NEED_PYTHON[0], NEED_PYTHON[1], sys.executable, version[0], version[1], HELP_PYTHON
            )
        )
    elif not (has_module("venv") and has_module("ensurepip")):
        problems.append(
            "Python's venv module is missing or incomplete: sudo apt install python3-venv (or python{}.{}-venv)".format(
                *version
            )
        )
    if free_gb < NEED_GB:
        problems.append(
            "{:.1f} GB of free disk needed for the environment in {}, only {:.1f} GB found: free some space, "
            "or clone the repository on a larger disk".format(NEED_GB, folder, free_gb)
        )
    return problems


def _can_import(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def main():
    folder = os.getcwd()
    problems = find_problems(folder)
    for problem in problems:
        sys.stderr.write("missing: " + problem + "\n")
    if not problems:
        print("This machine is ready: Python {}.{}, venv, disk.".format(*sys.version_info[:2]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
