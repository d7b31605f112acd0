"""Evaluation of a frozen network: one file a protocol, and what they share.

The protocols are registered here; importing this package loads no torch.
"""

from esvit_hf.evaluation.attention import AttentionTask
from esvit_hf.evaluation.correspondence import CorrespondenceTask
from esvit_hf.evaluation.dense import DenseTask
from esvit_hf.evaluation.few_shot import FewShotTask
from esvit_hf.evaluation.knn import KnnTask
from esvit_hf.evaluation.linear import LinearTask
from esvit_hf.evaluation.logistic import LogisticTask
from esvit_hf.evaluation.task import register_task

# In the order of the report.
for _task in (
    KnnTask,
    LinearTask,
    LogisticTask,
    FewShotTask,
    CorrespondenceTask,
    AttentionTask,
    DenseTask,
):
    register_task(_task)
