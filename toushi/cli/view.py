"""`toushi view`: opens the explorer in the browser."""

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
  toushi view runs/bank                          (saved by toushi layers --save: the page Layers)
  toushi view                                    (all traces below runs/)
  toushi view traces/class-3                     (all traces below another folder; new ones are written there)
  toushi view runs/cat --port 8600 --headless    (on a machine without a browser)

Stop it with Ctrl-C."""

    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FOLDER")] = None
    """The trace or collection to open; or a folder whose traces the gallery lists."""
    port: int | None = None
    """Port of the explorer; if not given, 8501 or the next free one."""
    headless: bool = False
    """Do not open a browser."""

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
        os.execve(command[0], command, environment)  # in this process, so that ending it ends the explorer

    def command(self) -> list[str]:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ToushiError(f"--port must be from 1 to 65535, but {self.port} came")
        app = Path(install_root()) / "toushi" / "dashboards" / "app.py"
        options = [] if self.port is None else ["--server.port", str(self.port)]
        options += ["--browser.gatherUsageStats", "false"]
        options += ["--server.headless", "true"] if self.headless else []
        folder = ["--", str(self.folder)] if self.folder else []
        return [sys.executable, "-m", "streamlit", "run", str(app), *options, *folder]


def install_root() -> str:
    """The folder that holds the package `toushi`."""
    return str(Path(toushi.__file__).parents[1])


def python_path() -> str:
    """PYTHONPATH with the package on it, because Streamlit adds only the app's own folder."""
    return os.pathsep.join(filter(None, [install_root(), os.environ.get("PYTHONPATH")]))
