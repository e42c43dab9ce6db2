"""One thread that does tasks in order behind a bounded queue: disk work beside the model's."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType


class BackgroundTasks:
    """Runs submitted tasks one after the other in a thread; an error of a task is raised by the next call here.

    After an error the tasks that still wait are dropped. Leaving the `with` block joins the thread.
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
        if kind is not None and self._error is None:
            self._error = error
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
