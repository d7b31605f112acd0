"""The authors' checkpoints: into models of this package and back."""

from esvit_hf.zoo.convert import (
    convert_checkpoint,
    read_reference_checkpoint,
    split_reference_state_dict,
)

__all__ = ["convert_checkpoint", "read_reference_checkpoint", "split_reference_state_dict"]
