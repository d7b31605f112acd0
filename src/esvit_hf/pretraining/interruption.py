"""SIGINT and SIGTERM as a wish to stop, on which all processes of a run agree."""

import os
import signal
import threading
from datetime import timedelta
from types import FrameType, TracebackType

import torch
from torch import Tensor, distributed

WORKER_GRACE_SECONDS = 300
"""How long a data-loading worker outlives a signal: longer than a step takes."""


def leave_signals_to_the_run(worker: int) -> None:
    """Let a data-loading worker live on after a signal to the whole group, so that the step in hand
    can end.

    It ends when its loader does; if nothing ends the loader, a while after SIGTERM, or at a second
    one.

    Args:
        worker: index of the worker, as a DataLoader gives it.
    """

    def end_later(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(WORKER_GRACE_SECONDS)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)


class StopRequest:
    """Collects SIGINT and SIGTERM instead of dying, so that a run can save a checkpoint first.

    Processes agree through a reduction of their own on the host that is read one step later:
    nothing waits for the device, and a signal that reaches one process stops all of them after the
    same step. A second SIGINT interrupts at once, except under torchrun: it repeats every signal
    that it gets itself.

    Args:
        num_processes: processes of the run.
        timeout: how long a process waits for the others.
    """

    def __init__(self, num_processes: int, timeout: timedelta) -> None:
        self.received = 0
        self.launched = "TORCHELASTIC_RUN_ID" in os.environ
        self.group: distributed.ProcessGroup | None = None
        if num_processes > 1:
            group = distributed.new_group(backend="gloo", timeout=timeout)
            assert isinstance(group, distributed.ProcessGroup)
            self.group = group
        self.pending: tuple[distributed.Work, Tensor] | None = None

    def __enter__(self) -> "StopRequest":
        # Python gives signals to its main thread alone; in another one they are the caller's.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self.previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if kind is None:
            self._agreed()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and not self.launched:
            raise KeyboardInterrupt
        self.received = self.received or number

    def poll(self) -> int:
        """Return the signal that the run stops for, 0 if there is none; every process calls this
        once a step.
        """
        if self.group is None:
            return self.received
        agreed = self._agreed()
        wish = torch.tensor(self.received)
        work = distributed.all_reduce(wish, distributed.ReduceOp.MAX, self.group, async_op=True)
        assert work is not None
        self.pending = work, wish
        return agreed

    def _agreed(self) -> int:
        if self.pending is None:
            return 0
        work, wish = self.pending
        self.pending = None
        work.wait()
        return int(wish)
