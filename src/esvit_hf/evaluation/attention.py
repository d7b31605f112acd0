"""The task `attention`: how widely the attention heads look."""

from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from esvit_hf.evaluation.task import EvaluationData, Needs, Score, Task, TaskResult
from esvit_hf.figures.report import plot_attention_entropy

__all__ = ["AttentionTask"]


@dataclass(frozen=True)
class AttentionTask(Task):
    """Base-2 entropy of the attention of every head, beside the largest possible one."""

    name = "attention"

    def needs(self) -> Needs:
        """Attention maps of the test images."""
        return Needs(network=True, attention=True, labels=False)

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure the entropy of every head."""
        from esvit_hf.regions.attention import measure_attention_entropy

        heads = measure_attention_entropy(
            data.store.backbone,
            data.splits.test,
            data.store.processor,
            num_workers=data.num_workers,
            accelerator=data.store.accelerator,
        )
        entropies: dict[int, list[float]] = {}
        for head in heads:
            entropies.setdefault(head.layer, []).append(head.entropy)
        largest = {head.layer: head.largest for head in heads}
        blocks: list[dict[str, Any]] = [
            {
                "block": block,
                "mean": round(fmean(entropies[block]), 4),
                "largest_possible": round(largest[block], 4),
                "heads": [round(entropy, 4) for entropy in entropies[block]],
            }
            for block in sorted(entropies)
        ]
        return TaskResult(
            title="attention",
            protocol=(
                "Base-2 entropy of the attention of a region, in bits, averaged over regions and "
                "images: 0 where a head looks at one region, the largest possible where it looks "
                "at all it can see alike. Blocks count from 0."
            ),
            numbers={"blocks": blocks},
            scores=[
                Score(
                    "entropy_last_block",
                    blocks[-1]["mean"],
                    f"mean over the heads of the last block, in bits; at most "
                    f"{blocks[-1]['largest_possible']}",
                )
            ],
            figures={"attention_entropy": partial(plot_attention_entropy, entropies, largest)},
        )
