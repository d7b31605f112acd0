"""The contract of one objective: what its head sees, its loss, its center and the signals it
reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from esvit_hf.backbones.adapter import BackboneFeatures
from esvit_hf.pretraining.centering import TeacherCenter
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.monitor import Rule
from esvit_hf.pretraining.objectives.position import CropPlaces
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings
from esvit_hf.pretraining.objectives.signals import collapse_rules, output_spread, teacher_entropy
from esvit_hf.pretraining.recipe import HeadSettings


@dataclass(frozen=True)
class Projection:
    """What one network makes of its crops for one objective, in groups of crops of one size.

    Attributes:
        features: what the head saw, one tensor (V_g, B, ..., C) a group.
        bottlenecks: what it made of them, unit length, one tensor (V_g, B, ..., D) a group.
    """

    features: list[Tensor]
    bottlenecks: list[Tensor]


@dataclass(frozen=True)
class Comparison:
    """Student and teacher over one micro-batch, as an objective sees them.

    Attributes:
        student: the student's crops.
        teacher: the teacher's crops, which are the student's first ones.
        student_head: the student's head; its prototypes give logits.
        teacher_head: the teacher's head.
        center: (K,) center of the teacher's logits.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's logits less their center.
        prepared: what `Objective.prepare_student_crops` handed on.
        places: where the student's crops lie in their images, one a group of crops of one size;
            None if that is not known.
    """

    student: Projection
    teacher: Projection
    student_head: ProjectionHead
    teacher_head: ProjectionHead
    center: Tensor
    student_temperature: float
    teacher_temperature: float
    prepared: Any = None
    places: Sequence[CropPlaces] | None = None

    def distributions(self) -> dict[str, Any]:
        """Return what turns bottlenecks into distributions, as the keywords of the losses."""
        return {
            "prototypes": self.student_head.prototype_direction,
            "gain": self.student_head.prototype_gain,
            "teacher_prototypes": self.teacher_head.prototype_direction,
            "teacher_gain": self.teacher_head.prototype_gain,
            "center": self.center,
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
        }


class Objective(ABC):
    """One way to compare student and teacher; `head_input` and `loss` are all that it must have.

    Args:
        settings: the recipe's settings of this objective.

    Attributes:
        name: key in recipes; begins the names of its numbers in `metrics.jsonl`.
        settings_class: dataclass of the settings.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings

    @abstractmethod
    def head_input(self, features: Sequence[BackboneFeatures]) -> list[Tensor]:
        """Choose what the head sees of a backbone's features.

        Args:
            features: groups of crops of one size, with an axis of views in front: regions
                (V_g, B, N_g, C), pooled (V_g, B, C).

        Returns:
            Tensors (V_g, B, ..., C), which share their number of axes.
        """

    @abstractmethod
    def loss(self, comparison: Comparison) -> Tensor:
        """Return the scalar loss of a micro-batch; nothing else changes.

        Args:
            comparison: student, with its graph, and teacher.
        """

    def prepare_student_crops(
        self, crops: Sequence[Tensor], teacher_views: int
    ) -> tuple[Sequence[Tensor], Any]:
        """Change what the student sees, for instance hide a part; all objectives see the result.

        Args:
            crops: one float tensor (B, 3, H, W) a view, the teacher's views first; not to be
                changed in place.
            teacher_views: number of views that the teacher sees, unchanged.

        Returns:
            The student's crops, and whatever the loss needs to know as `Comparison.prepared`.
        """
        del teacher_views
        return crops, None

    def build_head(self, feature_dim: int, settings: HeadSettings) -> ProjectionHead:
        """Build the head of the student; the teacher gets a copy.

        Args:
            feature_dim: channels C of the backbone's features.
            settings: the recipe's section of heads.
        """
        return ProjectionHead(
            feature_dim,
            settings.num_prototypes,
            hidden_dim=settings.hidden_dim,
            bottleneck_dim=settings.bottleneck_dim,
            num_layers=settings.num_layers,
            batch_norm=settings.batch_norm,
            train_prototype_gain=settings.train_prototype_gain,
        )

    def build_center(self, settings: HeadSettings) -> TeacherCenter:
        """Build the center of the teacher's logits.

        Args:
            settings: the recipe's section of heads.
        """
        return TeacherCenter(settings.num_prototypes, settings.center_momentum)

    def signals(self, comparison: Comparison) -> dict[str, Tensor]:
        """Describe the outputs by numbers that tell a collapse, when a step is logged.

        Args:
            comparison: the step's last micro-batch, of whose student a few images are left, with
                heads and center as they are after the step's update.

        Returns:
            Scalars on the device; the log puts the objective's name before theirs.
        """
        few, center = self.few_targets(comparison)
        single, mean = teacher_entropy(
            few, comparison.teacher_head.prototypes(), center, comparison.teacher_temperature
        )
        return {
            "teacher_entropy": single,
            "mean_target_entropy": mean,
            "teacher_spread": output_spread(comparison.teacher.bottlenecks[0]),
            "center_norm": comparison.center.norm(),
        }

    def few_targets(self, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """Choose the targets whose entropies are reported.

        Args:
            comparison: as for `signals`.

        Returns:
            Bottlenecks of the teacher (..., D), and the center of their logits (K,).
        """
        rows = comparison.teacher.bottlenecks[0]
        # Entropies take a row of K logits for every region: one image is enough.
        return rows if rows.ndim == 3 else rows[:, :1], comparison.center

    def rules(self, num_prototypes: int) -> list[Rule]:
        """Say which signals are a warning.

        Args:
            num_prototypes: number of prototypes K.

        Returns:
            Rules whose metric is the name of a signal.
        """
        return collapse_rules(num_prototypes)
