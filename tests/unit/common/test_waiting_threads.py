"""What the library that PyTorch's threads come from is told before it is loaded."""

import os
import re
import subprocess
import sys

import pytest

from esvit_hf.common.waiting_threads import SPINS, limit_spinning

# The library alone, which says how it is set, as PyTorch takes seconds.
LOAD = """
import ctypes, importlib.util, pathlib, sys
from esvit_hf.commands.main import main
main(["--version"])
assert "torch" not in sys.modules
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent / "lib"
(library,) = folder.glob("libgomp*")
ctypes.CDLL(str(library))
"""


@pytest.mark.parametrize(
    ("settings", "turns"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)],
)
def test_the_command_lets_threads_sleep_soon_unless_the_user_says_how(settings, turns):
    others = {name: value for name, value in os.environ.items() if not name.startswith("GOMP")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**others, "OMP_DISPLAY_ENV": "verbose", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert found is not None and int(found[1]) == turns


def test_nothing_is_set_once_pytorch_is_loaded(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "torch" in sys.modules
    limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
