"""What the core does in a process in which no library of the extras can be imported.

    python -m tests.packaging.core_only FOLDER < commands.json

Records a trace FOLDER/run and one with an edit, FOLDER/edited, then runs the commands: a JSON list of lists of
arguments. Prints exit code, output and errors of each, as JSON.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import toushi
from toushi.probe.base.extras import EXTRAS

PROMPT = "一只 red cat，月亮"


class WithoutExtras:
    """One of the interpreter's finders, which finds every module but those of the extras' libraries."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in EXTRAS else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def record_and_read(folder: Path) -> None:
    model = toushi.load("mini-unet")
    with toushi.record(model, folder / "run"):
        model.sample(PROMPT, steps=2, seed=0)
    trace = toushi.open_trace(folder / "run")
    assert trace.heat_map("月亮").dims == ("y", "x") and not trace.verify()
    edits = [toushi.Edit("unet.*.cross_attention", "zero", word="cat")]
    with toushi.edit(model, edits), toushi.record(model, folder / "edited"):
        edited = model.sample(PROMPT, steps=2, seed=0)
    assert edited.tobytes() != model.sample(PROMPT, steps=2, seed=0).tobytes()
    assert toushi.open_trace(folder / "edited").manifest.edits


def missing_libraries(folder: Path) -> None:
    for ask, extra in (
        (lambda: toushi.words_figure, "figures"),
        (lambda: toushi.load(str(folder / "pipeline")), "pipelines"),
        (lambda: toushi.load("mini-unet", offload="model"), "pipelines"),
    ):
        try:
            ask()
        except toushi.ToushiError as error:
            assert f'pip install "toushi[{extra}]"' in str(error) and "\n" not in str(error), error
        else:
            raise AssertionError(f"this needs a library of [{extra}], which is not here")


def outcome(command: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `toushi COMMAND`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = toushi.main(command)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    sys.meta_path[:] = [WithoutExtras(finder) for finder in sys.meta_path]
    home = Path(sys.argv[1])
    record_and_read(home)
    missing_libraries(home)
    print(json.dumps([outcome(command) for command in json.load(sys.stdin)]))
