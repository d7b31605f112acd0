"""A state of Accelerate for one call, although Accelerate has one for the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["own_accelerator_state"]


@contextmanager
def own_accelerator_state() -> Iterator[None]:
    """Let the Accelerator of a call choose its mixed precision, whatever was chosen before.

    Accelerate refuses a second choice in a process. Accelerators from before the call find their
    own state again afterwards. Serves as a decorator too: `@own_accelerator_state()`.
    """
    # Late, because it imports PyTorch.
    from accelerate.state import AcceleratorState

    before = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        AcceleratorState._shared_state.update(before)
