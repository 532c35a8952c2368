"""Parses the arguments, runs the command, and prints every error as one line that says what to do."""

import contextlib
import errno
import io
import os
import sys
import traceback
import warnings
from difflib import get_close_matches
from importlib import metadata
from typing import Protocol

import tyro

from toushi.cli.check import Check
from toushi.cli.compare import Compare
from toushi.cli.demo import Demo
from toushi.cli.doctor import Doctor
from toushi.cli.edit import Edit
from toushi.cli.env import Env
from toushi.cli.export import Export
from toushi.cli.figure import Figure
from toushi.cli.help_text import format_help
from toushi.cli.info import Info
from toushi.cli.layers import Layers
from toushi.cli.report import Report
from toushi.cli.run import Run
from toushi.cli.sites import Sites
from toushi.cli.trace import Trace
from toushi.cli.usage_error import summarize_usage_error
from toushi.cli.verify import Verify
from toushi.cli.view import View
from toushi.cli.why import Why
from toushi.cli.words import Words
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import explain_missing_library
from toushi.probe.base.path_error import PathError

ABOUT = """Toushi 透视: look inside text-to-image models.
Generate a picture, and see which words each region of the picture attended to:

  toushi trace "左边是猫，右边是月亮，夜晚" --out runs/cat
  toushi view runs/cat"""

HELP = """Every command explains itself: toushi trace --help
--debug, anywhere in the command, adds the traceback to an error. toushi --version prints the version."""

COMMANDS = {
    "demo": Demo,
    "trace": Trace,
    "view": View,
    "why": Why,
    "edit": Edit,
    "compare": Compare,
    "figure": Figure,
    "words": Words,
    "layers": Layers,
    "sites": Sites,
    "doctor": Doctor,
    "check": Check,
    "info": Info,
    "verify": Verify,
    "export": Export,
    "env": Env,
    "run": Run,
    "report": Report,
}
CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


class Command(Protocol):
    def run(self) -> int | None:
        """Runs the command. The exit code; None for 0."""


def run(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    if debug:
        arguments.remove("--debug")
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show 猫 gets a ?, not a crash
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            command = parse(arguments)
            with explain_missing_library():
                return command.run() or 0
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except ToushiError as error:
        return _fail(str(error), 2, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; finished steps can be read", 130, debug)
    except BrokenPipeError:  # `toushi words … | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is not None:
            return _fail(str(PathError(os.fsdecode(error.filename), error)), 2, debug)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # while a file was written
            return _fail(f"cannot write the file: {error.strerror}. Free some space, or choose another disk", 2, debug)
        return _fail_with_bug(error, debug)
    except Exception as error:
        return _fail_with_bug(error, debug)


def _fail_with_bug(error: Exception, debug: bool) -> int:
    text = f"{type(error).__name__}: {error} (a bug in Toushi; --debug shows where)"
    return _fail(text, 1, debug)


def parse(arguments: list[str]) -> Command:
    """The command with its options. Raises ToushiError for a mistake in them; --help prints and exits."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(format_overview())
        raise SystemExit(0)
    if arguments[0] == "--version":
        print(f"toushi {metadata.version('toushi')}")
        raise SystemExit(0)
    name, *options = arguments
    if name not in COMMANDS:
        near = get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ToushiError(f"there is no command {name!r}; {hint}there are: {', '.join(COMMANDS)}")
    kind, usage, message = COMMANDS[name], io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(usage), contextlib.redirect_stderr(message):
            return tyro.cli(kind, prog=f"toushi {name}", description="", args=options, config=CONFIG)
    except SystemExit as stop:
        if stop.code in (0, None):
            print(format_help(kind.ABOUT, usage.getvalue()))
            raise
        raise ToushiError(f"{summarize_usage_error(message.getvalue())} (see toushi {name} --help)") from None


def format_overview() -> str:
    lines = [f"  {name:8}{kind.ABOUT.splitlines()[0]}" for name, kind in COMMANDS.items()]
    return "\n".join([ABOUT, "", *lines, "", HELP])


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"toushi: {' '.join(text.split())}", file=sys.stderr)
    return code


def _warn(message, category, filename, lineno, file=None, line=None) -> None:
    from tqdm import tqdm

    tqdm.write(f"toushi: warning: {' '.join(str(message).split())}", file=sys.stderr)  # not into a bar's line
