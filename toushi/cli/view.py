"""`toushi view`: the explorer in the browser."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import toushi
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require


@dataclass(frozen=True)
class View:
    ABOUT = """Opens the explorer in the browser.

  toushi view runs/cat
  toushi view runs/bank                          (what toushi layers --save kept: the page Layers)
  toushi view                                    (all traces below runs/)
  toushi view traces/class-3                     (all traces below another folder; new ones go there)
  toushi view runs/cat --port 8600 --headless    (on a machine without a browser)

Ends with Ctrl-C."""

    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FOLDER")] = None
    """The trace, or the collection of traces, to open first; or a folder whose traces the gallery shows."""
    port: int | None = None
    """Where the explorer answers; 8501 or the next that is free, if not given."""
    headless: bool = False
    """Only serve; do not open a browser."""

    def run(self) -> int:
        require("streamlit", "matplotlib")
        if self.folder is not None:
            from toushi.cli.trace_listing import find_traces
            from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

            if find_traces(self.folder) == [self.folder]:
                # A damaged trace is reported here, not in the browser.
                open_encoder_trace(self.folder) if is_encoder_trace(self.folder) else open_trace(self.folder)
        command, environment = self.command(), {**os.environ, "PYTHONPATH": python_path()}
        if os.name != "posix":
            return subprocess.call(command, env=environment)
        sys.stdout.flush()
        os.execve(command[0], command, environment)  # this very process, so that whoever ends it ends the explorer

    def command(self) -> list[str]:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ToushiError(f"--port must lie in 1 to 65535, but {self.port} came")
        app = Path(install_root()) / "toushi" / "dashboards" / "app.py"
        options = [] if self.port is None else ["--server.port", str(self.port)]
        options += ["--browser.gatherUsageStats", "false"]
        options += ["--server.headless", "true"] if self.headless else []
        opened = ["--", str(self.folder)] if self.folder else []
        return [sys.executable, "-m", "streamlit", "run", str(app), *options, *opened]


def install_root() -> str:
    """The folder that holds the package `toushi`."""
    return str(Path(toushi.__file__).parents[1])


def python_path() -> str:
    """Streamlit puts only the app's own folder on the path."""
    return os.pathsep.join(filter(None, [install_root(), os.environ.get("PYTHONPATH")]))
