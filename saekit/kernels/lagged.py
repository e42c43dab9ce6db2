"""Numbers that only the device knows, read by the host some steps later, so that it never waits for them."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

LAG = 8
"""Steps between noting a number and reading it. The host runs ahead of the device by a few steps at most."""


class Note(NamedTuple):
    value: int
    context: int
    """Whatever the host knew when it noted the value."""


class Lagged:
    """The value of a counter `LAG` steps ago; at the beginning, the first there is.

    Always that of the same step, however fast the device is, so that what depends on it repeats from run to run.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Tensor, torch.cuda.Event | None, int]] = deque()
        self._known: Note | None = None

    def note(self, value: Tensor, context: int = 0) -> None:
        """Start copying `value`, an integer on the device, to the host. At most once a step."""
        if value.device.type != "cuda":
            self._queue.append((value.detach().clone(), None, context))
            return
        host = torch.empty((), dtype=value.dtype, pin_memory=True)
        host.copy_(value.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._queue.append((host, event, context))

    def read(self) -> Note | None:
        """What is known by now; None before anything was noted. Waits only for the first value ever."""
        if self._queue and (self._known is None or len(self._queue) >= LAG):
            host, event, context = self._queue.popleft()
            if event is not None:
                event.synchronize()
            self._known = Note(int(host), context)
        return self._known
