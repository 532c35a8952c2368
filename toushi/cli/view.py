"""`toushi view`: opens the explorer in the browser."""

import errno
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import toushi
from toushi.cli.language import language_of
from toushi.probe.base.bilingual_text import Messages
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require

LOOPBACK, EVERYWHERE = ("localhost", "127.0.0.1", "::1"), ("0.0.0.0", "::")
FIRST_PORT, PORTS = 8501, 100
MESSAGES = Messages(
    {
        "address": ("Address    {url}", "网址    {url}"),
        "who": (
            "Visitors   everybody who can reach this machine over its network, without a password",
            "访客    网络上能连到这台机器的任何人，不需要密码",
        ),
        "may": (
            "They may   see the traces in {folder}, record, edit and delete some (--read-only: only see)",
            "权限    观看 {folder} 里的记录，也能新做、干预和删除（--read-only：只能观看）",
        ),
        "may_see": ("They may   only see the traces in {folder}", "权限    只能观看 {folder} 里的记录"),
    }
)


@dataclass(frozen=True)
class View:
    ABOUT = """Opens the explorer in the browser.

  toushi view runs/cat
  toushi view runs/bank                          (saved by toushi layers --save: the page Layers)
  toushi view                                    (all traces below runs/)
  toushi view traces/class-3                     (all traces below another folder; new ones are written there)
  toushi view runs/cat --port 8600 --headless    (on a machine without a browser)
  toushi view traces/class-3 --host 0.0.0.0      (for other devices in the network; prints the address)
  toushi view runs --host 0.0.0.0 --read-only    (for a show)

Stop it with Ctrl-C."""

    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FOLDER")] = None
    """The trace or collection to open; or a folder whose traces the gallery lists."""
    port: int | None = None
    """Port of the explorer; if not given, 8501 or the next free one."""
    headless: bool = False
    """Do not open a browser."""
    host: str = "localhost"
    """The address of this machine on which others can reach the explorer, or 0.0.0.0 for all. localhost: nobody else."""
    read_only: bool = False
    """Only show traces: nobody can record, edit or delete any, or open other folders."""

    def run(self) -> int:
        require("streamlit", "matplotlib")
        if self.folder is not None:
            from toushi.cli.trace_listing import find_traces
            from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

            if find_traces(self.folder) == [self.folder]:
                # A damaged trace is reported here, not in the browser.
                open_encoder_trace(self.folder) if is_encoder_trace(self.folder) else open_trace(self.folder)
        command, environment = self.command(), {**os.environ, "PYTHONPATH": python_path()}
        if self.is_shared:
            print(self.describe_access(command[command.index("--server.port") + 1]))
        if os.name != "posix":
            return subprocess.call(command, env=environment)
        sys.stdout.flush()
        os.execve(command[0], command, environment)  # in this process, so that ending it ends the explorer

    def command(self) -> list[str]:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ToushiError(f"--port must be from 1 to 65535, but {self.port} came")
        app = Path(install_root()) / "toushi" / "dashboards" / "app.py"
        port = free_port(self.host) if self.port is None and self.is_shared else self.port
        options = [] if port is None else ["--server.port", str(port)]
        options += ["--server.address", self.host, "--logger.hideWelcomeMessage", "true"] if self.is_shared else []
        options += ["--browser.gatherUsageStats", "false"]
        options += ["--server.headless", "true"] if self.headless else []
        flags = ["--shared"] * self.is_shared + ["--read-only"] * self.read_only
        arguments = [*flags, *([str(self.folder)] if self.folder else [])]
        return [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            str(app),
            *options,
            *(["--", *arguments] if arguments else []),
        ]

    @property
    def is_shared(self) -> bool:
        return self.host not in LOOPBACK

    def describe_access(self, port: str) -> str:
        """Where the explorer is, who can reach it, and what they may do."""
        host = network_address() if self.host in EVERYWHERE else self.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        keys = ("address", "who", "may_see" if self.read_only else "may")
        language, folder = language_of(None), self.folder or "runs"
        return "\n".join(MESSAGES.translate(language, key, url=url, folder=folder) for key in keys)


def network_address() -> str:
    """The address of this machine in its network; its name if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


def free_port(host: str) -> int:
    """The first free port from FIRST_PORT. Raises ToushiError if the host is no address of this machine."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ToushiError(
                    f"--host must be an address of this machine, such as 0.0.0.0; {host!r} is none ({error.strerror})"
                ) from None
    raise ToushiError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; name another one with --port")


def install_root() -> str:
    """The folder that holds the package `toushi`."""
    return str(Path(toushi.__file__).parents[1])


def python_path() -> str:
    """PYTHONPATH with the package on it, because Streamlit adds only the app's own folder."""
    return os.pathsep.join(filter(None, [install_root(), os.environ.get("PYTHONPATH")]))
