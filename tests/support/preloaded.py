"""What the server of `process_group` imports before it forks: all that the programs of tests need.

Python looks for garbage neither while it imports, which takes a quarter of the time, nor later
among what was imported, which a fork would have to copy for it.
"""

import gc
import importlib

MODULES = (
    *("esvit_hf.pretraining.loop", "esvit_hf.evaluation.running", "esvit_hf.features.files"),
    # What evaluations import when they need it.
    *("evaluate", "matplotlib.backends.backend_agg", "matplotlib.figure", "sklearn.metrics"),
)

gc.disable()
for name in MODULES:
    importlib.import_module(name)
gc.freeze()
gc.enable()
