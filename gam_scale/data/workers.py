"""Worker processes that are connected to this one by pipes alone.

The standard library's pools also need named semaphores, which stay in /dev/shm for good if all
processes are killed together, as batch systems do.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any


class WorkerDied(Exception):
    """A process ended before it had done its task."""


class Workers:
    """A pool of ``count`` processes, for a ``with`` statement.

    Args:
        make: called once in each process, with ``arguments``; what it returns does the tasks.
    """

    def __init__(self, count: int, make: Callable[..., Callable], *arguments: Any) -> None:
        # A fork would copy the locks of Arrow's and the hub client's threads in whatever state.
        self._context = multiprocessing.get_context("spawn")
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        with _interrupts_blocked():
            self._started = [self._start(make, arguments) for _ in range(count)]
        for ours, _ in self._started:
            self._idle.put(ours)
        self._threads = ThreadPoolExecutor(count)  # as many as there are processes: none waits

    def submit(self, task: Any) -> "Future[Any]":
        """Have a process do ``task``; return a future of its result.

        The future raises WorkerDied if the process was killed, or else what the task raised.
        """
        return self._threads.submit(self._do, task)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for ours, process in self._started:
            ours.close()  # the process then reads the end of the pipe, and ends
            process.join()

    def _start(self, make: Callable[..., Callable], arguments: tuple) -> tuple[Connection, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        process.start()
        theirs.close()
        return ours, process

    def _do(self, task: Any) -> Any:
        connection = self._idle.get()
        try:
            connection.send(task)
            result = connection.recv()
        except (EOFError, OSError):
            raise WorkerDied from None
        finally:
            self._idle.put(connection)
        if isinstance(result, Exception):
            raise result
        return result


def _serve(connection: Connection, make: Callable[..., Callable], arguments: tuple) -> None:
    # The loop ends when the other end of the pipe is closed, or its process was killed.
    with suppress(EOFError, OSError):
        work = make(*arguments)
        while True:
            task = connection.recv()
            try:
                result = work(task)
            except Exception as error:
                result = error
            connection.send(result)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C, which reaches every process of the terminal, for processes started in here.

    They inherit the signal mask and never see it. A signal that comes meanwhile waits until this
    process lifts its own mask.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
