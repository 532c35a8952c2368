"""An executor of studies that computes every job in this process."""

import traceback

from toushi.experiments.runner.executor import Call, Outcome


class Here:
    """Another engine under the same experiment: this process, last call first."""

    def __init__(self):
        self.calls: list[Call] = []
        self.done: list[str] = []

    def submit(self, call: Call) -> None:
        self.calls.append(call)

    def outcomes(self):
        while self.calls:
            call = self.calls.pop()
            self.done.append(call.name)
            try:
                yield Outcome(call.name, call.function(**call.arguments))
            except Exception as error:
                yield Outcome(call.name, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())

    def close(self) -> None:
        self.calls.clear()
