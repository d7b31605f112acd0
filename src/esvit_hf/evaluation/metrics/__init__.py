"""Metric scripts that `evaluate.load` takes by path; `esvit_hf.evaluation.load_metric` finds them
by name.
"""
