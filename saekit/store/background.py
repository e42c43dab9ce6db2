"""Disk work beside the model's: tasks done in a thread, and items made ahead in a thread."""

import queue
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")


class BackgroundTasks:
    """Runs submitted tasks one after the other in a thread; an error of a task is raised by the next call here.

    After an error the tasks that still wait are dropped. Leaving the `with` block waits for the rest.
    """

    def __init__(self, n_waiting: int) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=n_waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saekit-writer", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Queue `task`; waits while `n_waiting` tasks are ahead of it."""
        self._raise()
        self._queue.put(task)

    def drain(self) -> None:
        """Wait until everything submitted is done."""
        self._queue.join()
        self._raise()

    def __enter__(self) -> "BackgroundTasks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._queue.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                if self._error is None:
                    task()
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()


def read_ahead(items: Generator[Item, None, None], n_waiting: int) -> Generator[Item, None, None]:
    """The items of a generator that runs in a thread, at most `n_waiting` (and the one in its hands) ahead.

    Its errors are raised here. Closing this generator, or dropping it, ends the thread and closes `items`.
    """
    out: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=n_waiting)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, out, stop), name="saekit-ahead", daemon=True)
    thread.start()
    try:
        while True:
            what, value = out.get()
            if what == "end":
                return
            if what == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def _fill(items: Generator[Item, None, None], out: "queue.Queue[tuple[str, Any]]", stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(out, ("item", item), stop):
                return
        _put(out, ("end", None), stop)
    except BaseException as error:
        _put(out, ("error", error), stop)
    finally:
        items.close()


def _put(out: "queue.Queue[tuple[str, Any]]", item: tuple[str, Any], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            out.put(item, timeout=0.05)
        except queue.Full:
            continue
        return True
    return False
