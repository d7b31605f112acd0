"""Workers take their memory from the system once."""

import os
import platform
import subprocess
import sys

import pytest
from tests.support.paths import ROOT

# `tests` is found from the root.
COUNT = """
import sys
from tests.support.new_pages import pages_of_a_photograph
from esvit_hf.common.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
print([pages_of_a_photograph() for _ in range(5)][-1])
"""


def new_pages(word: str, **environment: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", COUNT, word],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(process.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_the_memory_of_an_image_is_that_of_the_one_before(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    assert new_pages("keep") < 100
    assert new_pages("leave") > 1000
    assert new_pages("keep", MALLOC_TRIM_THRESHOLD_="1000000") > 1000
