"""Commands that read traces: info, verify, view, export, compare."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.shell import HOUSE, PROMPT
from toushi import main
from toushi.probe.trace.collection import write_collection


def test_info_tells_what_is_there(recorded, capsys):
    assert main(["info", str(recorded[0])]) == 0
    said = capsys.readouterr().out
    facts, sites = said.split("\n\n")
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in facts.splitlines())
    assert (facts["prompt"], facts["words"]) == (PROMPT, "左边  是  猫  右边  是  月亮  夜晚")
    assert (facts["steps"], facts["size"], facts["sampler"], facts["seed"]) == ("3 of 3", "32x64", "euler", "0")
    assert not {"LoRA", "safety checker", "edits"} & set(facts)
    assert facts["unet"].startswith("UNet, float32, weights ") and facts["scheduler"].startswith("Scheduler, shift 1.5")
    assert facts["arguments"] == "steps=3, size=[32, 64]"
    assert re.search(r"^unet\.down\.0\.cross_attention +image to text +8x16 ", sites, re.MULTILINE)
    assert main(["verify", str(recorded[0])]) == 0 and "no problem found" in capsys.readouterr().out


def test_info_tells_what_was_put_in_what_was_blocked_and_what_is_not_recorded(recorded, tmp_path, capsys):
    shutil.copytree(recorded[0], tmp_path / "run")
    more = {
        "loras": [{"name": "style", "file": "style.safetensors", "scale": 0.8, "on": True}],
        "generator_state": "AAAA",
        "batch": 2,
        "batch_index": 1,
        "arguments": {"eta": 1.0, "image": {"type": "Image", "shape": [8, 8, 3], "dtype": "RGB", "sha256": "ab" * 32}},
        "safety": "blocked",
        "true_guidance": 2.5,
        "not_recorded": {"controlnet.*": "a control network attends by itself"},
    }
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({**manifest, **more}), encoding="utf-8")
    assert main(["info", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    unseen = r"not recorded +controlnet\.\*: a control network attends by itself"
    again = "arguments +eta=1.0, image=Image abababababab"
    assert "the generator was used before" in said
    for row in (
        "LoRA +style.safetensors x 0.8",
        "safety checker +blocked",
        "real guidance +2.5",
        unseen,
        again,
        "picture +2 of 2",
    ):
        assert re.search(f"^{row}$", said, re.MULTILINE), row


def test_traces_that_lie_in_one_folder_are_told_and_checked_together(tiny, tmp_path, capsys):
    for name in ("a", "b"):
        main(["trace", f"猫 {name}", "--model", tiny, "--size", "16", "--steps", "1", "--out", str(tmp_path / name)])
    main(["layers", "河边的银行", "--save", str(tmp_path / "layers")])
    capsys.readouterr()
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "猫 a" in said and "猫 b" in said and "河边的银行" in said
    assert main(["verify", str(tmp_path)]) == 0 and capsys.readouterr().out.count("no problem found") == 3
    (tmp_path / "a" / "manifest.json").write_text((tmp_path / "a" / "manifest.json").read_text()[:-9])
    assert main(["verify", str(tmp_path)]) == 1  # the damaged one is named, the others are looked at all the same
    said = capsys.readouterr().out
    assert said.count("no problem found") == 2 and f"{tmp_path / 'a'}: " in said
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "damaged" in said and "猫 b" in said


def test_a_damaged_trace(recorded, fails, tmp_path, capsys):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in recorded[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    step = folder / "step_0001.safetensors"
    whole = step.read_bytes()
    step.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["verify", str(folder)]) == 1 and "step_0001" in capsys.readouterr().out
    (folder / "manifest.json").write_text('{"format": ')
    for name in ("info", "verify", "view"):
        assert "manifest.json" in fails(name, folder)


def test_a_collection_can_be_viewed(recorded, tmp_path, monkeypatch):
    shutil.copytree(recorded[0], tmp_path / "many" / "000")
    write_collection(tmp_path / "many", ["000"])
    started = []
    monkeypatch.setattr(os, "execve", lambda *how: started.append(how))
    for folder in (tmp_path / "many", recorded[0].parent):  # one that was recorded so, or one by one
        assert main(["view", str(folder), "--headless"]) == 0
        assert started[-1][1][-1] == str(folder) and "--server.port" not in started[-1][1]


def test_view_starts_the_explorer_on_the_folder(recorded, monkeypatch):
    calls = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append((command, environment)))
    assert main(["view", str(recorded[0]), "--port", "8765", "--headless"]) == 0
    ((said, environment),) = calls
    assert said[-2:] == ["--", str(recorded[0])] and "8765" in said and Path(said[4]).is_file()
    assert str(HOUSE) in environment["PYTHONPATH"]


@pytest.mark.parametrize("locale, who, may, look", [
    ("C", "everybody who can reach this machine", "record, edit and delete", "only see"),
    ("zh_CN.UTF-8", "网络上能连到这台机器的任何人", "新做、干预和删除", "只能观看"),
])  # fmt: skip
def test_view_says_who_can_come_and_what_they_may_do(recorded, monkeypatch, capsys, locale, who, may, look):
    calls = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append(command))
    monkeypatch.setenv("LC_ALL", locale)
    folder = str(recorded[0])
    assert main(["view", folder]) == 0 and capsys.readouterr().out == "" and "--server.address" not in calls[-1]
    assert main(["view", folder, "--host", "0.0.0.0"]) == 0
    said, port = capsys.readouterr().out, calls[-1][calls[-1].index("--server.port") + 1]
    assert re.search(rf"http://[\w.-]+:{port}\n", said) and who in said and may in said and "0.0.0.0" not in said
    assert (
        calls[-1][-3:] == ["--", "--shared", folder] and calls[-1][calls[-1].index("--server.address") + 1] == "0.0.0.0"
    )
    assert main(["view", folder, "--host", "0.0.0.0", "--read-only"]) == 0
    assert look in capsys.readouterr().out and calls[-1][-3:] == ["--shared", "--read-only", folder]


def test_what_layers_saved_can_be_viewed(tmp_path, monkeypatch, capsys):
    folder, calls = tmp_path / "bank", []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append(command))
    assert main(["layers", "我在河边的银行钓鱼", "--save", str(folder)]) == 0
    assert f"toushi view {folder}" in capsys.readouterr().out
    assert main(["view", str(folder)]) == 0 and calls[0][-1] == str(folder)


def test_export_writes_one_file_and_keeps_what_is_there(recorded, fails, tmp_path, capsys):
    out = str(tmp_path / "cat.npz")
    assert main(["export", str(recorded[0]), "--to", "npz", "--out", out, "--words", "猫", "月亮"]) == 0
    said = capsys.readouterr()
    assert out in said.out and "6 arrays" in said.out and "/18" in said.err  # two words, three grids, three steps
    with np.load(out) as data:
        names = {name.rpartition("/")[0] for name in data.files if name != "about"}
    assert names == {"cond/猫", "cond/月亮"}
    assert "--overwrite" in fails("export", recorded[0], "--to", "npz", "--out", out)
    assert "not in the prompt" in fails(
        "export", recorded[0], "--to", "npz", "--out", out, "--overwrite", "--words", "狗"
    )
    assert main(["export", str(recorded[0]), "--to", "parquet", "--tokens", "--out", str(tmp_path / "cat.pq")]) == 0
    assert "rows" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 2


def test_compare_prints_pictures_settings_and_words_and_draws(recorded, tiny, fails, tmp_path, capsys):
    folder, other, figure = recorded[0], tmp_path / "other", tmp_path / "both.png"
    assert (
        main(["trace", PROMPT, "--model", tiny, "--steps", "2", "--size", "32x64", "--seed", "9", "--out", str(other)])
        == 0
    )
    capsys.readouterr()
    assert main(["compare", str(folder), str(other), "--words", "月亮", "猫", "--out", str(figure)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"mean difference +\d+\.\d of 255", said) and re.search(r"^seed +\d+ +9$", said, re.MULTILINE)
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("月亮", "猫", "左边"))] == ["月亮", "猫"]
    assert said.endswith(f"figure  {figure}\n") and figure.read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", str(folder), str(folder)]) == 0
    assert "no setting differs" in capsys.readouterr().out
    assert "狗" in fails("compare", folder, other, "--words", "狗")
