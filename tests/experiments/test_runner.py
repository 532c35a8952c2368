"""`toushi run`: every job once, whatever ends the process; one run in a folder; the same bytes when made again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import Field

from tests.experiments import coins
from tests.experiments.coins import Config
from tests.experiments.in_process import Here
from tests.write_file import write_file
from toushi import main
from toushi.experiments.runner import run_study as runner
from toushi.experiments.runner.environment import hash_code, hash_json, source_files
from toushi.experiments.runner.executor import Call, LocalPool
from toushi.experiments.runner.result_folder import (
    NoResult,
    format_table,
    lock_folder,
    parse_table,
    read_manifest,
    read_table,
    read_tables,
)
from toushi.experiments.runner.result_manifest import TableHash
from toushi.experiments.runner.settings import Count, Seed, Share, config_values, config_words, load_config
from toushi.experiments.runner.study import Finding, Job
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError

HOUSE = Path(__file__).parents[2]
NAME = "tests.experiments.coins"


def ran(out: Path, config: Config | None = None, **options) -> tuple[runner.StudyResult, list[str]]:
    here = Here()
    done = runner.run_study(coins, config or Config(), out, executor=here, quiet=True, **options)
    return done, [name for name in here.done if name != "conclude"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.csv"))}


# --- a run ---


def test_a_run_leaves_rows_tables_and_a_manifest(tmp_path):
    metal = tmp_path / "coin" / "metal.bin"
    write_file(metal, b"metal")
    done, computed = ran(tmp_path / "run", Config(seed=3, metal=metal))
    manifest = read_manifest(tmp_path / "run")
    assert manifest == done.manifest and manifest.complete and done.new_jobs == 4 and not done.failed
    assert sorted(computed) == sorted(manifest.jobs) == sorted(["铜钱-0", "银元-1", "铜钱-2", "银元-3"])
    assert manifest.experiment == NAME and manifest.config == config_values(Config(seed=3, metal=metal))
    assert manifest.verdict in ("supported", "refuted") and "正面" in manifest.sentence.zh
    assert manifest.seeds == {"seed": 3} and list(manifest.weights) == ["coin/metal.bin"]
    assert manifest.versions["pandas"] and manifest.hardware.processor and manifest.threads == 1
    assert "末几位" in manifest.may_differ.zh and manifest.argv == [Path(sys.argv[0]).name, *sys.argv[1:]]
    rows = read_table(tmp_path / "run" / "jobs" / "铜钱-2.csv")
    expected = np.random.default_rng([3, 2])
    assert (rows.heads == (expected.random(50) < 0.5)).all()
    assert (rows.weight == expected.normal(size=50).astype("float32")).all()  # to the last bit
    tables = read_tables(tmp_path / "run", manifest)
    assert list(tables) == ["coins"] and list(tables["coins"].coin) == list(manifest.jobs)


def test_run_again_it_computes_no_job_and_gives_the_same_bytes(tmp_path):
    ran(tmp_path / "run")
    before = contents(tmp_path / "run")
    done, computed = ran(tmp_path / "run")
    assert computed == [] and done.new_jobs == 0 and contents(tmp_path / "run") == before
    ran(tmp_path / "other")
    assert contents(tmp_path / "other")["tables/coins.csv"] == before["tables/coins.csv"]
    _, computed = ran(tmp_path / "run", overwrite=True)
    assert len(computed) == 4


@pytest.mark.slow
def test_the_pool_gives_the_same_whatever_the_number_of_processes(tmp_path):
    for processes in (1, 2):
        runner.run_study(coins, Config(coins=3), tmp_path / str(processes), processes=processes, quiet=True)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    rows = read_table(tmp_path / "1" / "jobs" / "铜钱-0.csv")
    assert (tmp_path / "1" / "jobs" / "铜钱-0.log").read_text(encoding="utf-8") == "thrown 铜钱-0\n"
    assert rows.luck.nunique() == 1  # what a forgotten seed gave, the same in both


def test_jobs_that_fail_or_die_stop_no_other_and_are_tried_again(tmp_path, capfd):
    gate = tmp_path / "gate"
    command = ["run", NAME, "--out", str(tmp_path / "run"), "--jobs", "2", "--set", "bad=1,2", f"gate={gate}"]
    assert main([*command, "dies=3"]) == 1
    said = capfd.readouterr()
    assert "3 of 4 jobs failed" in said.err and "银元-1  ValueError: 银元-1 rolled under the table" in said.err
    assert "银元-3  its process ended by signal 9" in said.err and "JOB.error.txt" in said.err
    home = tmp_path / "run" / "jobs"
    assert "raise ValueError" in (home / "铜钱-2.error.txt").read_text(encoding="utf-8")
    manifest = read_manifest(tmp_path / "run")
    assert not manifest.complete and manifest.verdict is None and list(manifest.jobs) == ["铜钱-0"]
    assert set(manifest.failed) == {"银元-1", "铜钱-2", "银元-3"}

    done, computed = ran(tmp_path / "r", Config(bad=(1, 2), gate=gate))
    assert set(done.failed) == {"银元-1", "铜钱-2"}
    gate.touch()
    done, computed = ran(tmp_path / "r", Config(bad=(1, 2), gate=gate))
    assert sorted(computed) == sorted(["银元-1", "铜钱-2"]) and done.manifest.complete and not done.failed
    assert not list((tmp_path / "r").rglob("*.error.txt"))


def test_a_conclusion_that_fails_keeps_the_jobs(tmp_path):
    with pytest.raises(ToushiError, match=r"all jobs are done, but nothing could be concluded: ValueError: no idea"):
        ran(tmp_path / "run", Config(wrong="no idea"))
    assert not read_manifest(tmp_path / "run").complete
    assert "Traceback" in (tmp_path / "run" / "conclude.error.txt").read_text()


def test_a_verdict_that_there_is_not_is_refused():
    with pytest.raises(ToushiError, match="one of supported, refuted, undecided, measured, but 'proved' came"):
        Finding("proved", Bilingual(en="", zh=""), {})


# --- killed ---


def started(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "toushi", "run", NAME, "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    # Later jobs wait long enough for the blow to fall between them.
    return subprocess.Popen(
        [*command, "--set", "coins=6", "wait=0.7", *more],
        env=environment,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        # Ctrl-C is ignored in what `make test &` starts, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: subprocess.Popen, out: Path, count: int, blow: signal.Signals, group: bool) -> str:
    """Lets fall the blow when so many jobs are done, and waits until nothing is left of the process and its pool."""
    deadline = time.monotonic() + 60
    while len(list((out / "jobs").glob("*.csv"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, blow)
    said = process.communicate(timeout=60)[1]
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return said
        time.sleep(0.05)
    raise AssertionError("its pool is still at work")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
def test_killed_and_started_again_it_goes_on_to_the_same_end(tmp_path):
    out, config = tmp_path / "run", Config(coins=6, wait=0.7)
    said = ended(started(out), out, 1, signal.SIGINT, group=True)
    lines = [line.rpartition("\r")[2] for line in said.splitlines() if line.strip()]
    assert lines[-1].strip() == ("toushi: interrupted; finished jobs are kept, and the same command continues"), said
    assert "Traceback" not in said and not read_manifest(out).complete

    ended(started(out), out, 3, signal.SIGKILL, group=False)
    assert not read_manifest(out).complete
    (out / "jobs" / "银元-5.csv.tmp").write_text("coin,he")  # cut off in the midst of writing
    kept = {file: file.stat().st_mtime_ns for file in (out / "jobs").glob("*.csv")}
    assert 3 <= len(kept) < 6

    done = runner.run_study(coins, config, out, processes=2, quiet=True)
    assert done.manifest.complete and done.new_jobs == 6 - len(kept)
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    runner.run_study(coins, config, tmp_path / "whole", processes=2, quiet=True)
    assert contents(out) == contents(tmp_path / "whole")


# --- refused ---


def test_a_folder_of_another_run_is_refused_with_both_hashes_and_what_differs(tmp_path):
    metal = tmp_path / "metal.bin"
    write_file(metal, b"gold")
    out = tmp_path / "run"
    config = Config(metal=metal)
    ran(out, config)
    before, manifest = contents(out), json.loads((out / "manifest.json").read_text(encoding="utf-8"))

    with pytest.raises(ToushiError) as other:
        ran(out, Config(metal=metal, seed=1))
    hashes = [hash_json([NAME, config_values(one)])[:12] for one in (config, Config(metal=metal, seed=1))]
    assert "config {} there, {} here (seed: 0 there, 1 here)".format(*hashes) in str(other.value)

    write_file(metal, b"lead")
    with pytest.raises(ToushiError, match=r"weights .*metal.bin [0-9a-f]{12} there, [0-9a-f]{12} here. Choose"):
        ran(out, config)
    write_file(metal, b"gold")

    (out / "manifest.json").write_text(json.dumps({**manifest, "experiment": "dice"}))
    with pytest.raises(ToushiError, match=f"study dice there, {NAME} here"):
        ran(out, config)
    assert contents(out) == before


@pytest.mark.slow
def test_the_rest_of_a_run_is_not_computed_with_other_packages_or_threads(tmp_path):
    out = tmp_path / "run"
    ran(out, Config(bad=(1,)))
    with pytest.raises(ToushiError, match="computed with threads 1, but here it is 2.*--threads 1"):
        ran(out, Config(bad=(1,)), threads=2)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    write_file(out / "manifest.json", json.dumps({**manifest, "versions": {**manifest["versions"], "torch": "1.0"}}))
    with pytest.raises(ToushiError, match=r"computed with torch 1\.0"):
        ran(out, Config(bad=(1,)))
    write_file(out / "manifest.json", json.dumps({**manifest, "code_sha256": "0" * 64, "git": "older"}))
    with pytest.warns(UserWarning, match="has changed since 3 of its 4 jobs were done"):
        done, _ = ran(out, Config(bad=(1,)))
    assert done.manifest.git == "older"  # what the jobs were computed with, not what looked at them last


def test_the_hash_of_the_code_is_of_all_that_an_experiment_imports_and_of_nothing_else(tmp_path):
    for name, text in {
        "study.py": "import torch, mine.far\nfrom mine.near import told\n",
        "near.py": "from toushi.probe.base.errors import ToushiError\n\ndef told():\n    from . import late\n",
        "late.py": "",
        "far.py": "import toushi.experiments.measures.statistics as statistics, mine.study\n",
        "other.py": "",
        "__init__.py": "",
    }.items():
        write_file(tmp_path / "mine" / name, text)
    study = ModuleType("mine.study")
    study.__file__ = str(tmp_path / "mine" / "study.py")
    found = source_files(study)
    mine = {name for name in found if name.startswith("mine")}
    assert mine == {"mine", "mine.study", "mine.near", "mine.late", "mine.far"}
    assert {"toushi.experiments.measures.statistics", "toushi.probe.base.errors"} <= set(found) and "torch" not in found
    before = hash_code(study)
    write_file(tmp_path / "mine" / "other.py", "x = 1\n")
    assert hash_code(study) == before
    write_file(tmp_path / "mine" / "late.py", "x = 1\n")
    assert hash_code(study) != before


def test_an_experiment_is_made_of_its_helpers_and_not_of_the_trainings():
    found = set(source_files(runner.load_study("disambiguation")))
    assert {
        "toushi.experiments.measures.encoder_states",
        "toushi.experiments.measures.minimal_pairs",
        "toushi.probe.analysis.layer_measures",
    } <= found
    assert not any(name.startswith("toushi.experiments.training.train") for name in found)


def test_a_folder_with_other_things_and_a_second_run_at_the_same_time(tmp_path):
    write_file(tmp_path / "run" / "image.png", b"")
    with pytest.raises(ToushiError, match="is no result.*it is not empty; choose another --out"):
        ran(tmp_path / "run")
    (tmp_path / "b").mkdir()
    with lock_folder(tmp_path / "b"), pytest.raises(ToushiError, match="another toushi run is working"):
        ran(tmp_path / "b")
    with pytest.raises(ToushiError, match="needs the weights .*nowhere.bin"):
        ran(tmp_path / "c", Config(metal=tmp_path / "nowhere.bin"))


def test_a_call_that_is_another_one_is_done_again(tmp_path, monkeypatch):
    ran(tmp_path / "run")
    changed = [Job(job.name, job.function, {**job.arguments, "bias": 0.9}) for job in coins.jobs(Config())[:1]]
    monkeypatch.setattr(coins, "jobs", lambda config: changed)
    assert ran(tmp_path / "run")[1] == ["铜钱-0"]


def test_killed_between_record_and_rows_the_rows_of_another_call_do_not_pass_for_its_own(tmp_path, monkeypatch):
    ran(tmp_path / "run")
    changed = [Job(job.name, job.function, {**job.arguments, "bias": 0.9}) for job in coins.jobs(Config())[:1]]
    monkeypatch.setattr(coins, "jobs", lambda config: changed)

    def killed(path, content):
        if path.suffix == ".csv":
            raise KeyboardInterrupt
        write_atomic(path, content)

    with monkeypatch.context() as blow:
        blow.setattr(runner, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            ran(tmp_path / "run")
    assert ran(tmp_path / "run")[1] == ["铜钱-0"]


def inside():
    def thrown():
        return pd.DataFrame()

    return thrown


@pytest.mark.parametrize(
    "jobs, said",
    [
        ([Job("a/b", coins.thrown)], "a name that a file can have"),
        ([Job("a", coins.thrown), Job("A", coins.thrown)], "two jobs are called"),
        ([Job("a", inside())], "must stand at the top of its module"),
        ([Job("a", coins.thrown, {"coin": Path("a")})], "must be JSON values"),
        ([], "makes no job"),
    ],
)
def test_jobs_that_cannot_be_run_are_refused(jobs, said):
    with pytest.raises(ToushiError, match=said):
        runner.check_jobs(jobs)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "toushi-trace"}', '{"format": "toushi-run", "version": 9}'])
def test_what_is_no_run_is_told_in_one_line(text, tmp_path):
    write_file(tmp_path / "manifest.json", text)
    with pytest.raises(NoResult) as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["../outside", "a/b", ""])
def test_a_manifest_cannot_name_a_table_outside_its_folder(name, tmp_path):
    ran(tmp_path / "run")
    write_file(tmp_path / "outside.csv", "secret\n1\n")
    manifest = read_manifest(tmp_path / "run").model_copy(update={"tables": {name: TableHash(rows=1, sha256="")}})
    with pytest.raises(NoResult, match="no name of a table"):
        read_tables(tmp_path / "run", manifest)


# --- tables ---


def test_tables_come_back_to_the_last_bit():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        dict(
            x=random.normal(size=100) * 10.0 ** random.integers(-300, 300, 100),
            half=random.normal(size=100).astype("float16"),
            word=["NA", "null", "猫，狗", 'a"b'] * 25,
            yes=random.random(100) < 0.5,
            n=range(100),
            gap=[None, 1.5] * 50,
            edge=[np.inf, -np.inf, np.nan, -0.0] * 25,
        )
    )
    again = parse_table(format_table(table))
    for name in table:
        ours, theirs = table[name], again[name]
        assert (ours.isna() == theirs.isna()).all() and (ours.dropna() == theirs.dropna()).all(), name
    assert format_table(again) == format_table(table)
    assert parse_table(format_table(pd.DataFrame())).empty
    named = parse_table(format_table(table.groupby("word").x.mean().to_frame()))
    assert list(named) == ["word", "x"]


@pytest.mark.parametrize(
    "table, said",
    [
        (pd.DataFrame({"a": ["", "b"]}), "'a'.*empty text"),
        (pd.DataFrame({"a": ["1", "2"]}), "'a'.*text that is no number"),
        (pd.DataFrame({"a": [[1], [2]]}), "'a'.*list"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "columns of a table must be different"),
        ({"a": 1}, "DataFrame, but dict"),
    ],
)
def test_what_would_not_come_back_is_refused(table, said):
    with pytest.raises(ToushiError, match=said):
        format_table(table)


# --- configurations ---


@dataclass(frozen=True)
class Many:
    count: int = 1
    rate: float = 0.1
    name: str = "猫"
    flag: bool = False
    folder: Path | None = None
    layers: tuple[int, ...] = (1, 2)
    words: tuple[str, ...] | None = None
    size: tuple[int, int] = (64, 64)
    how: Literal["mean", "last"] = "mean"
    most: Count | None = None
    shares: tuple[Share, ...] = ()
    seed: Seed = 0
    angle: Annotated[float, Field(ge=-90, le=90), "degrees"] = 0.0
    note: Annotated[str, "for people"] = ""

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")


@pytest.mark.parametrize(
    "word, value",
    [
        ("count=-0", 0),
        ("rate=1e-3", 1e-3),
        ("rate=2", 2.0),
        ("name=007", "007"),
        ("name=a=b", "a=b"),
        ("flag=true", True),
        ("folder=null", None),
        ("folder=runs/x", Path("runs/x")),
        ("layers=[3, 4]", (3, 4)),
        ("layers=3", (3,)),
        ("layers=", ()),
        ("words=银行,苹果", ("银行", "苹果")),
        ("words=none", None),
        ("size=32,64", (32, 64)),
        ("how=last", "last"),
        ("most=1", 1),
        ("most=none", None),
        ("shares=0,1,0.5", (0.0, 1.0, 0.5)),
        ("seed=0", 0),
        ("angle=-90", -90.0),
        ("note=a", "a"),
    ],
)
def test_set_takes_what_the_dataclass_says(word, value):
    config = load_config(Many, words=[word])
    found = getattr(config, word.partition("=")[0])
    assert found == value and type(found) is type(value)
    assert load_config(Many, words=config_words(config)) == config


@pytest.mark.parametrize(
    "word, said",
    [
        ("cuont=3", "there is no key 'cuont'; did you mean count"),
        ("count=many", "count must be a whole number, but 'many' came"),
        ("count=1.0", "count must be a whole number"),
        ("rate=nan", "rate must be a finite number, but 'nan' came"),
        ("rate=-inf", "rate must be a finite number"),
        ("flag=yes", "flag must be true or false"),
        ("size=1,2,3", "size must be 2 values, a whole number, a whole number, but '1,2,3' came"),
        ("layers=a", "layers must be a list, each a whole number, but 'a' came"),
        ("layers=[a", r"layers must be a list, each a whole number, but '\[a' came"),
        ("how=first", "how must be one of mean, last, but 'first' came"),
        ("count", "expected key=value, but 'count' came"),
        ("count=-1", "count must not be negative"),
        ("most=0", "most must be null or a whole number of at least 1, but '0' came"),
        ("most=few", "most must be null or a whole number of at least 1, but 'few' came"),
        ("shares=0.5,1.5", "shares must be a list, each a finite number from 0 to 1, but '0.5,1.5' came"),
        ("seed=-1", "seed must be a whole number from 0 to 4294967295, but '-1' came"),
        ("seed=4294967296", "seed must be a whole number from 0 to 4294967295"),
        ("angle=90.5", "angle must be a finite number from -90 to 90"),
        ("angle=nan", "angle must be a finite number from -90 to 90"),
    ],
)
def test_set_says_in_one_line_what_does_not_fit(word, said):
    with pytest.raises(ToushiError, match=said) as error:
        load_config(Many, words=[word])
    assert "\n" not in str(error.value)


def test_a_yaml_file_beside_the_module_and_words_over_it(tmp_path):
    file = tmp_path / "many.yaml"
    write_file(file, "rate: 1e-3\nlayers: [5]\nfolder: runs/x\n")
    config = load_config(Many, file, ["rate=0.5"])
    assert config == Many(rate=0.5, layers=(5,), folder=Path("runs/x"))
    for text, said in [
        ("name: no", "name must be text, but False came"),
        ("rate: .nan", "rate must be a finite number"),
        ("flag: 1", "true or false"),
        ("layers: 3", "a list, each a whole number"),
        ("size: [1]", "2 values"),
        ("most: 0", "most must be null or a whole number of at least 1, but 0 came"),
        ("seed: true", "seed must be a whole number from 0"),
        ("shares: 1", "a list, each a finite number from 0 to 1"),
        ("rates: 1", "did you mean rate"),
        ("- 1", "must hold lines like"),
        ("a: [", "is no YAML"),
        ("how: x", "one of mean, last"),
    ]:
        write_file(file, text)
        with pytest.raises(ToushiError, match=said) as error:
            load_config(Many, file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


# --- the command ---


def test_the_command_says_what_is_wrong_in_one_line(capsys):
    for arguments, said in [
        (["run"], "give the name of a study"),
        (["run", "layer_semantic"], "there is no study 'layer_semantic'"),
        (["run", "no.such.module"], "Python cannot import 'no.such.module'"),
        (["run", "../coins.py"], "'../coins.py' is not the name of a module"),
        (["run", ".coins"], "'.coins' is not the name of a module"),
        (["run", "tests.experiments.test_polysemy"], "is not a study: it lacks STUDY"),
        (["run", NAME, "--set", "trows=5"], "did you mean throws"),
        (["run", NAME, "--config", "large"], "there is no configuration 'large'"),
        (["run", NAME, "--jobs", "0"], "--jobs must be 1 or more"),
    ]:
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("experiment", runner.study_names())
def test_no_experiment_begins_with_a_number_that_cannot_be(experiment, tmp_path, capsys):
    wrong = dict(seed=-1, left_out=-1, share=1.5, least=-0.1, guidance=-0.5)
    numbers = [one.name for one in fields(runner.load_study(experiment).Config) if one.type not in (str, Path)]
    for key in {*numbers} - {"data", "split"}:
        value = wrong.get(key, 0)
        assert main(["run", experiment, "--out", str(tmp_path / "run"), "--set", f"{key}={value}"]) == 2
        err = capsys.readouterr().err
        assert f"{key} must be" in err and f"but '{value}' came" in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


def test_every_experiment_can_be_told_and_imported(capsys):
    assert main(["run", "--list"]) == 0
    said = capsys.readouterr().out
    for name in runner.study_names():
        module = runner.load_study(name)
        assert name in said and module.STUDY.question.zh in said
        assert f"--set: {', '.join(field.name for field in fields(module.Config))}" in said
        assert runner.study_config(module) == module.Config()
        for variant in runner.config_files(module):
            runner.study_config(module, variant)


def test_the_pool_says_so_if_a_function_cannot_be_found():
    pool = LocalPool()
    try:
        pool.submit(Call("sum", sum, {"iterable": 3}))
        pool.submit(Call("max", max, {"iterable": [1]}))
        assert {outcome.name for outcome in pool.outcomes()} == {"sum", "max"}
    finally:
        pool.close()
