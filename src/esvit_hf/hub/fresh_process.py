"""The check that a model folder loads anywhere: in new processes with and without this package, to
the same bits.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["check_loads"]

_PROGRAM = Path(__file__).with_name("standalone_outputs.py")
# While libraries are imported, the search for garbage takes a quarter of the time and finds none.
_WITHOUT_COLLECTION = "import gc; gc.disable()\n"
# What Python and its libraries need to start; anything else may be a secret.
_KEPT = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TEMP", "TMP"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)


def check_loads(folder: Path) -> None:
    """Load a folder in two new processes, one without this package, and compare what the model
    computes.

    Both run the code that the folder carries. They get no environment variables but the few that
    Python needs, so no tokens, and an empty folder as home; the Hub is switched off.

    Args:
        folder: model folder with an image processor.

    Raises:
        ValueError: it does not load in one of them, or the outputs differ.
    """
    # The command line's help comes from here without PyTorch.
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as workplace:
        outputs = {kind: Path(workplace) / f"{kind}.safetensors" for kind in ("with", "without")}
        processes = {kind: _start(folder, kind, output) for kind, output in outputs.items()}
        errors = {kind: process.communicate()[1] for kind, process in processes.items()}
        for kind, process in processes.items():
            if process.returncode != 0:
                reason = " ".join(errors[kind].strip().splitlines()[-1:])[:300]
                raise ValueError(
                    f"{folder} does not load in a process {kind} this package ({reason}): save it "
                    f"again with save_pretrained, model and image processor"
                )
        found, alone = (load_file(output) for output in outputs.values())
    for name in sorted(found.keys() | alone.keys()):
        if name not in found or name not in alone or not torch.equal(found[name], alone[name]):
            raise ValueError(
                f"{folder}: {name} differs between this package and the code in the folder: save "
                f"it again with save_pretrained, so that both are the same version"
            )


def _start(folder: Path, kind: str, output: Path) -> "subprocess.Popen[str]":
    home = output.with_suffix(".home")
    home.mkdir()
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
    }
    # Isolated, Python looks for modules among the installed ones alone.
    isolation = ["-I"] if kind == "without" else []
    return subprocess.Popen(
        [
            sys.executable,
            *isolation,
            "-c",
            _WITHOUT_COLLECTION + _PROGRAM.read_text(),
            kind,
            str(folder.resolve()),
            str(output),
        ],
        cwd=output.parent,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
