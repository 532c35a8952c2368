"""Where calls are computed: an interface of three methods, and a pool of local processes behind it.

Another engine (a cluster's) has to do what `Executor` says and nothing else: an experiment never sees it. What a call
gives may depend on its function and arguments alone, so it is the same whoever computes it, and in whatever order.
"""

import contextlib
import io
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing import connection, get_context, parent_process
from typing import Any, Protocol


@dataclass(frozen=True)
class Call:
    """`function(**arguments)`, under a name that is its own; the function stands at the top of its module."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a call: its value, or the error in one line and where it came from."""

    name: str
    value: Any = None
    error: str | None = None
    trace: str = ""
    said: str = ""  # what it printed
    seconds: float = 0.0


class Executor(Protocol):
    def submit(self, call: Call) -> None:
        """Takes a call to be computed, once."""
        ...

    def outcomes(self) -> Iterator[Outcome]:
        """What became of the calls, as they end, in any order; stops when nothing that was submitted is left.

        A call that fails, or takes its process with it, is an outcome too.
        """
        ...

    def close(self) -> None:
        """Ends everything at once; what is not finished is lost."""
        ...


class LocalPool:
    """Processes on this machine, each with so many threads and a call at a time.

    They are fresh interpreters whose hash seed is 0, and each call begins with random generators seeded from its name,
    so that a call that forgot to seed one, or walks over a set, still gives the same again.
    """

    def __init__(self, processes: int = 1, threads: int = 1):
        self.processes, self.threads = processes, threads
        self._waiting: deque[Call] = deque()
        self._busy: dict[connection.Connection, tuple[Any, Call]] = {}
        self._idle: list[tuple[connection.Connection, Any]] = []

    def submit(self, call: Call) -> None:
        self._waiting.append(call)

    def outcomes(self) -> Iterator[Outcome]:
        while self._waiting or self._busy:
            while self._waiting and len(self._busy) < self.processes:
                self._begin(self._waiting.popleft())
            for pipe in connection.wait(list(self._busy)):
                yield self._ended(pipe)

    def close(self) -> None:
        processes = [process for process, _ in self._busy.values()] + [process for _, process in self._idle]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(3)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in [*self._busy, *(pipe for pipe, _ in self._idle)]:
            pipe.close()
        for held in (self._waiting, self._busy, self._idle):
            held.clear()

    def _begin(self, call: Call) -> None:
        pipe, process = self._idle.pop() if self._idle else self._started()
        self._busy[pipe] = (process, call)
        with contextlib.suppress(OSError):  # a process that is no more is found by `outcomes`
            pipe.send_bytes(pickle.dumps(call))

    def _ended(self, pipe) -> Outcome:
        process, call = self._busy.pop(pipe)
        try:
            outcome = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join()
            pipe.close()
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            hint = ": out of memory? try fewer --jobs" if process.exitcode == -9 else ""
            return Outcome(call.name, error=f"its process ended by {how}{hint}")
        self._idle.append((pipe, process))
        return outcome

    def _started(self):
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.threads), daemon=True)
        with _environment(self.threads), _deaf_to_ctrl_c():  # both are inherited
            process.start()
        theirs.close()
        return ours, process


def _work(pipe, threads: int) -> None:
    """The life of a process of the pool."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_answer(message, threads))


def _answer(message: bytes, threads: int) -> bytes:
    name, said, started = "", io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            call = pickle.loads(message)  # imports its module
            name = call.name
            _settle(name, threads)
            started = time.perf_counter()
            value = call.function(**call.arguments)
            return pickle.dumps(Outcome(name, value, said=said.getvalue(), seconds=time.perf_counter() - started))
    except BaseException as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        where = traceback.format_exc()
        return pickle.dumps(Outcome(name, None, line, where, said.getvalue(), time.perf_counter() - started))


def _settle(name: str, threads: int) -> None:
    """The same start for each call, whatever this process did before."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:4], "big")
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(seed)


def _end_with_parent() -> None:
    """A process whose parent was killed would compute for nobody."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(threads: int):
    """Numeric libraries read how many threads to take when they are imported, so it is said before the start."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    told = {**dict.fromkeys(names, str(threads)), "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_ctrl_c():
    """Ctrl-C is for the process that started the pool: it ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
