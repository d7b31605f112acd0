"""Objects that stay in the memory which forked processes share."""

import gc
import subprocess
import sys
import weakref

import pytest

from esvit_hf.common.shared_objects import leave_objects_in_place

PROGRAM = """
import gc
import multiprocessing
import sys
import time
from contextlib import nullcontext

import psutil

from esvit_hf.common.shared_objects import leave_objects_in_place

gc.disable()
objects = [[index] for index in range(500_000)]
with leave_objects_in_place() if sys.argv[1] == "left" else nullcontext():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    gc.collect()
    print(psutil.Process(child.pid).memory_full_info().uss >> 20)
    child.kill()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a forked process")
def test_a_full_collection_gives_a_forked_process_no_copies() -> None:
    left, moved = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, mode]))
        for mode in ("left", "collected")
    )
    # The objects take some 40 MiB.
    assert left < 10 < 30 < moved


@pytest.mark.usefixtures("nothing_frozen")
def test_objects_are_collected_again_after_the_outermost_context() -> None:
    class Node:
        itself: "Node"

    with leave_objects_in_place():
        with leave_objects_in_place():
            assert gc.get_freeze_count()
        assert gc.get_freeze_count()
        node = Node()
        node.itself = node
        gc.freeze()
        gone = weakref.ref(node)
        del node
        gc.collect()
        is_kept = gone() is not None
    gc.collect()
    assert is_kept and gone() is None and not gc.get_freeze_count()
