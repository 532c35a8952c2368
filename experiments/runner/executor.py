"""Where calls are computed: an interface of three methods, and a pool of local processes behind it.

Another engine, such as a cluster's, implements `Executor`. A study never sees it. The value of a call may depend on its
function and arguments alone, so it is the same wherever and in whatever order calls are computed.
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
from multiprocessing.process import BaseProcess
from typing import Protocol


@dataclass(frozen=True)
class Call:
    """`function(**arguments)` under a unique name. The function stands at the top of its module."""

    name: str
    function: Callable[..., object]
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The value of a call, or its error in one line."""

    name: str
    value: object = None
    error: str | None = None
    traceback: str = ""
    output: str = ""  # what it printed
    seconds: float = 0.0


class Executor(Protocol):
    def submit(self, call: Call) -> None:
        """Takes a call to be computed, once."""
        ...

    def outcomes(self) -> Iterator[Outcome]:
        """The outcome of each submitted call, as they end, in any order.

        A call that fails, or ends its process, has an outcome, too.
        """
        ...

    def close(self) -> None:
        """Ends everything at once; what is not finished is lost."""
        ...


class LocalPool:
    """Processes on this machine, each with `threads` threads and one call at a time.

    They are fresh interpreters with hash seed 0. Each call begins with random generators that are seeded from its name.
    So a call that seeds none, or iterates over a set, still repeats its value.
    """

    def __init__(self, processes: int = 1, threads: int = 1):
        self.processes, self.threads = processes, threads
        self._waiting: deque[Call] = deque()
        self._busy: dict[connection.Connection, tuple[BaseProcess, Call]] = {}
        self._idle: list[tuple[connection.Connection, BaseProcess]] = []

    def submit(self, call: Call) -> None:
        self._waiting.append(call)

    def outcomes(self) -> Iterator[Outcome]:
        while self._waiting or self._busy:
            while self._waiting and len(self._busy) < self.processes:
                self._begin(self._waiting.popleft())
            ready = connection.wait(list(self._busy))
            for pipe in [pipe for pipe in self._busy if pipe in ready]:
                yield self._receive(pipe)

    def close(self) -> None:
        every = [(pipe, process) for pipe, (process, _) in self._busy.items()] + self._idle
        for _, process in every:
            process.terminate()
        for pipe, process in every:
            process.join(3)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        for held in (self._waiting, self._busy, self._idle):
            held.clear()

    def _begin(self, call: Call) -> None:
        pipe, process = self._idle.pop() if self._idle else self._start_process()
        self._busy[pipe] = (process, call)
        with contextlib.suppress(OSError):  # `outcomes` notices a process that has ended
            pipe.send_bytes(pickle.dumps(call))

    def _receive(self, pipe: connection.Connection) -> Outcome:
        process, call = self._busy.pop(pipe)
        try:
            outcome = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join()
            pipe.close()
            code = process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            hint = ": out of memory? try fewer --jobs" if code == -9 else ""
            return Outcome(call.name, error=f"its process ended by {how}{hint}")
        self._idle.append((pipe, process))
        return outcome

    def _start_process(self) -> tuple[connection.Connection, BaseProcess]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.threads), daemon=True)
        with _environment(self.threads), _ignore_sigint():  # both are inherited
            process.start()
        theirs.close()
        return ours, process


def _serve(pipe: connection.Connection, threads: int) -> None:
    """The main function of a process of the pool: answers calls until the pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_answer(message, threads))


def _answer(message: bytes, threads: int) -> bytes:
    name, output, started = "", io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            call = pickle.loads(message)  # imports its module
            name = call.name
            _seed(name, threads)
            started = time.perf_counter()
            value = call.function(**call.arguments)
            return pickle.dumps(Outcome(name, value, output=output.getvalue(), seconds=time.perf_counter() - started))
    except BaseException as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        seconds = time.perf_counter() - started
        return pickle.dumps(Outcome(name, None, line, traceback.format_exc(), output.getvalue(), seconds))


def _seed(name: str, threads: int) -> None:
    """Gives each call the same start, whatever this process did before."""
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
    """Ends this process when its parent ends, for nobody would get what it computes."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The variables that numeric libraries read when they are imported: a process inherits them when it starts."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    values = {**dict.fromkeys(names, str(threads)), "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _ignore_sigint() -> Iterator[None]:
    """Ctrl-C is for the process that started the pool, which ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
