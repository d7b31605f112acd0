"""Save a network in the layout of the Hub and publish it: `python examples/push_to_hub.py FOLDER
NAME/MODEL`.

Log in once with `hf auth login`. `esvit push` does the same as one command.
"""

from pathlib import Path
from typing import Any

from esvit_hf import push
from esvit_hf.commands.command_line import run


def main(
    folder: Path, repo_id: str, *, private: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Publish a model folder after checking it; the last line of the output is one JSON object.

    Args:
        folder: what a run, a conversion or save_pretrained has left.
        repo_id: NAME/MODEL on the Hub.
        private: make the repository private.
        dry_run: check, and send nothing.
    """
    return push(folder, repo_id, private=private, dry_run=dry_run)


if __name__ == "__main__":
    run(main)
