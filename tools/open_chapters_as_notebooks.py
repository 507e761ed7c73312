"""Make this environment's JupyterLab open MyST chapters as notebooks at a click.

`jupytext-config set-default-viewer` does so for every JupyterLab of the user; an overrides.json inside .venv
does it for this project only.
"""

import json
import sys
from pathlib import Path

OVERRIDES = {
    "@jupyterlab/docmanager-extension:plugin": {
        "defaultViewers": {"markdown": "Jupytext Notebook", "myst": "Jupytext Notebook"}
    },
    # No news and update pop-ups: the lab asks nothing of the network.
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
}


def main() -> None:
    path = Path(sys.prefix) / "share/jupyter/lab/settings/overrides.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(OVERRIDES, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
