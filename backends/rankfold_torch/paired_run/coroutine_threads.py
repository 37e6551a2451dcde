"""Threads as coroutines: a model's forward pass that stops at its layers and goes on later.

They hand on to each other through queues that are written in C: an interrupt comes before or after
a step of these, never within it.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_CPU = torch.device("cpu")


class _Stopped(BaseException):
    """Ends a forward pass that nobody waits for; no `except Exception` of a model catches it."""


class CoroutineThread(threading.Thread):
    """A function in a thread of its own, which runs only while `resume` waits for it.

    Every turn has its own state of PyTorch's random generators, so that two runs of a model draw
    the same numbers, and the surroundings of the thread that makes it: autocast, streams and the
    like belong to a thread.

    Args:
        function: what runs.
        devices: CUDA devices whose random state belongs to the turn.
        role: a word on what it is for.

    Attributes:
        role: as given.
        paused: what the function paused with; None before the first turn and when it is through.
        calls: a count of anything, for the function's own use.
        error: what the function raised.
    """

    def __init__(
        self, function: Callable[[], object], devices: Sequence[torch.device], role: str
    ) -> None:
        # A turn that is never resumed or stopped must not keep the process from ending.
        super().__init__(daemon=True)
        self.role = role
        self.paused: Any = None
        self.calls: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._function = function
        self._devices = devices
        self._random = _random_states(devices)
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._thread_settings = _thread_settings()
        # Thread-local state of PyTorch has to be entered anew in the thread. What libraries keep in
        # context variables comes along with a copy of the context.
        self._context = contextvars.copy_context()

    def resume(self) -> None:
        """Run the function to its next pause or its end.

        Raises:
            Exception: what the function raises.
        """
        # The default generators belong to the process, not to a thread. A turn starts with the
        # state at its construction, which all turns of one driver have in common, and takes it up
        # again at each resume: the k-th draw of a run is the same however runs are interleaved.
        # The caller's state is put back after every turn, so its own draws are not disturbed.
        outside = _random_states(self._devices)
        _set_random_states(self._random, self._devices)
        self.paused = None
        try:
            # The thread starts at the first turn: a batch that is never reached costs none.
            if self.ident is None:
                self.start()
            self._go.put(None)
            self._back.get()
            self._random = _random_states(self._devices)
        finally:
            _set_random_states(outside, self._devices)
        if self.error is not None:
            raise self.error

    def pause(self, what: object) -> None:
        """Wait for the next turn; called by the function."""
        self.paused = what
        self._back.put(None)
        self._wait()

    def stop(self) -> None:
        """End the function where it is; nothing happens when it is through.

        It may be called again where an interrupt came between, while the function still runs too.
        """
        # The flag comes first: the thread that the token wakes up must see it. A token too many,
        # of a second call, stays in the queue of a thread that has ended.
        self._stopping = True
        self._go.put(None)
        if self.is_alive():
            self.join()
        self.paused = None

    def run(self) -> None:
        """Run in the thread; called by `start`."""
        try:
            self._wait()  # so that nothing runs where an interrupt has cut `start` short
            with self._thread_settings():
                self._context.run(self._function)
        except _Stopped:
            pass
        # An exception would be printed and lost at the end of a thread. It is raised by `resume` in
        # the thread of the caller, to whom it belongs.
        except BaseException as error:
            self.error = error
        finally:
            self.paused = None
            # Always, or the caller would wait for good.
            self._back.put(None)

    def _wait(self) -> None:
        if not self._stopping:  # a model that goes on after `_Stopped` would wait for good
            self._go.get()
        if self._stopping:
            raise _Stopped


def _thread_settings() -> Callable[[], Any]:
    """Return a context manager in which another thread computes as the current one does."""
    autocasts = [(kind, *_autocast(kind)) for kind in ("cuda", "cpu")]
    default = torch.get_default_device() if hasattr(torch, "get_default_device") else _CPU
    cuda = torch.cuda.is_available()
    stream = torch.cuda.current_stream() if cuda else None

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for kind, enabled, dtype in autocasts:
                if enabled:
                    stack.enter_context(torch.autocast(kind, dtype=dtype))
            if default.type != "cpu":
                stack.enter_context(default)
            if stream is not None:
                stack.enter_context(torch.cuda.device(stream.device))
                stack.enter_context(torch.cuda.stream(stream))
            yield

    return entered


def _autocast(kind: str) -> tuple[bool, torch.dtype]:
    try:
        return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    # `is_autocast_enabled` took no argument, and each kind had functions of its own.
    except (AttributeError, TypeError):  # PyTorch before 2.4
        if kind == "cuda":
            return torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
        return torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()


def _random_states(devices: Sequence[torch.device]) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random_states(states: Sequence[torch.Tensor], devices: Sequence[torch.device]) -> None:
    torch.set_rng_state(states[0])
    for state, device in zip(states[1:], devices, strict=True):
        torch.cuda.set_rng_state(state, device)
