"""How a model is loaded: every option has its effect, is in the manifest, or is refused with what to do."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file

import toushi.probe.pipelines.load_options as loading_module
from tests.pipelines.tiny import draw, made
from toushi import main
from toushi.cli.trace import Trace
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.generate import generate
from toushi.probe.pipelines.load import NoGain, bnb_4bit_config, load
from toushi.probe.pipelines.load_options import BadOption, LoadOptions, options_of
from toushi.probe.pipelines.lora import BadLora
from toushi.probe.pipelines.model_index import UnknownModel
from toushi.probe.pipelines.out_of_memory import OutOfMemory
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(name) -> the folder of that tiny pipeline."""
    home, known = tmp_path_factory.mktemp("saved"), {}

    def folder(name: str) -> Path:
        if name not in known:
            made(name).save_pretrained(home / name)
            known[name] = home / name
        return known[name]

    return folder


def recorded(folder: Path, tmp_path: Path, **options):
    """The trace of one picture of the model that was loaded so."""
    pipeline = load(str(folder), "cpu", **options)
    with record(pipeline, tmp_path / "run", keep="mean", overwrite=True):
        generate(pipeline, "a red cat", steps=1, size=(32, 32))
    return open_trace(tmp_path / "run")


# --- every option, from the shell to the manifest ---


def test_what_was_chosen_is_in_the_manifest(saved, lora, tmp_path, capsys, figures_in_this_process):
    file = lora("stable-diffusion")
    options = ["--dtype", "bf16", "--device", "cpu", "--vae-tiling", "--medvram", "--lora", f"{file}:0.5"]
    options += ["--steps", "1", "--size", "32", "--out", str(tmp_path / "run")]
    assert main(["trace", "a red cat", "--model", str(saved("stable-diffusion")), *options]) == 0
    assert "on the CPU it only costs time" in capsys.readouterr().err
    trace = open_trace(tmp_path / "run")
    assert trace.manifest.dtype == "bfloat16" and trace.manifest.device == "cpu" and trace.verify() == []
    assert trace.manifest.loading == {
        "engine": "own",
        "device": "cpu",
        "threads": None,
        "dtype": "bf16",
        "offload": "model",
        "vae_tiling": True,
        "compile": False,
        "quantize": None,
        "embedding_cache": None,
    }
    assert [(own.file, own.scale) for own in trace.manifest.loras] == [(file.name, 0.5)]


def test_what_was_left_open_is_told_too(saved):
    loading = options_of(load(str(saved("stable-diffusion")), "cpu"))
    assert (loading.device, loading.dtype) == ("cpu", "fp32")


def test_a_pipeline_keeps_the_threads_of_torch_unless_others_are_asked_for(saved):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        load(str(saved("stable-diffusion")), "cpu")
        assert torch.get_num_threads() == 3
        assert options_of(load(str(saved("stable-diffusion")), "cpu", threads=2)).threads == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_names_of_the_article():
    assert (
        Trace(medvram=True).checked_loading().offload == "model"
        and Trace(lowvram=True).checked_loading().offload == "sequential"
    )
    assert LoadOptions(offload="medvram").offload == "model" and LoadOptions(offload="lowvram").offload == "sequential"  # pyright: ignore[reportArgumentType]


def test_names_that_contradict_each_other(fails):
    assert "use one" in fails("trace", "cat", "--medvram", "--offload", "group")
    assert "use one" in fails("trace", "cat", "--medvram", "--lowvram")


def test_sites_takes_the_same_options(saved, capsys):
    assert (
        main(["sites", "--model", str(saved("z-image")), "--engine", "diffusers", "--offload", "group", "--size", "32"])
        == 0
    )
    assert "transformer.layers.1.attention" in capsys.readouterr().out


def test_many_prompts_from_a_file(saved, tmp_path, figures_in_this_process):
    file = tmp_path / "prompts.txt"
    file.write_text("a red cat\n\nthe moon and 月亮\n", encoding="utf-8")
    options = ["--model", saved("stable-diffusion"), "--steps", "1", "--size", "32x48", "--out", tmp_path / "run"]
    assert main(["trace", "--prompts", str(file), *map(str, options)]) == 0
    traces = open_collection(tmp_path / "run")
    assert [trace.prompt for trace in traces] == ["a red cat", "the moon and 月亮"]
    assert all(trace.complete and trace.verify() == [] for trace in traces)
    alone = generate(load(str(saved("stable-diffusion")), "cpu"), "the moon and 月亮", steps=1, size=(32, 48))
    assert np.array_equal(alone, traces[1].image())


def test_tiles_of_the_vae(saved, tmp_path):
    pipeline = load(str(saved("stable-diffusion")), "cpu", vae_tiling=True)
    assert pipeline.vae.use_tiling
    assert load(str(saved("z-image")), "cpu", vae_tiling=True).vae.use_tiling


@pytest.mark.parametrize("name", ["stable-diffusion", "flux", "z-image", "pixart"])
def test_each_block_is_compiled_by_itself(name, saved, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append(type(self).__name__))
    load(str(saved(name)), "cpu", compile=True)
    assert (
        set(compiled)
        == {
            "stable-diffusion": {"BasicTransformerBlock"},
            "flux": {"FluxTransformerBlock", "FluxSingleTransformerBlock"},
            "z-image": {"Block"},
            "pixart": {"BasicTransformerBlock"},
        }[name]
    )


# --- our own Z-Image ---


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_our_own_z_image_under_offload(way, saved):
    how = {"steps": 2, "size": 32, "guidance": 2.0, "seed": 3}
    plain = load(str(saved("z-image")), "cpu").sample("a red cat", **how)
    with pytest.warns(NoGain):
        model = load(str(saved("z-image")), "cpu", offload=way)
    assert str(model.device) == "cpu"
    if way == "sequential":
        assert {str(weight.device) for weight in model.parameters()} == {"meta"}
    for _ in range(2):
        assert np.array_equal(model.sample("a red cat", **how), plain)


def test_what_our_own_z_image_does_not_take(saved, lora):
    with pytest.raises(BadOption, match=r"--lora .*--engine diffusers"):
        load(str(saved("z-image")), "cpu", lora=str(lora("z-image")))


PEAK = """
import json, sys, threading, time
from pathlib import Path
import torch, toushi.probe.models.z_image, toushi.probe.pipelines.load
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
before, peak, done = anonymous(), 0, False
def look():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=look)
thread.start()
model = toushi.probe.pipelines.load.load(sys.argv[1], "cpu", sys.argv[2])
done = True
thread.join()
print(json.dumps([peak - before, sum(p.numel() * p.element_size() for p in model.transformer.parameters())]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
def test_a_sharded_checkpoint_never_holds_two_copies(tmp_path):
    """Of weights that are stored in fp32 and wanted in bf16: what is held besides them is a fraction of them."""
    from tests.pipelines.tiny_joint_attention import z_image

    pipeline = z_image()
    wide = dict(pipeline.transformer.config) | {"dim": 768, "n_heads": 12, "n_kv_heads": 12, "axes_dims": [16, 24, 24]}
    with torch.device("meta"):  # numbers are not drawn: they do not matter
        transformer = type(pipeline.transformer).from_config(wide | {"n_layers": 4})
    pipeline.transformer = transformer.to_empty(device="cpu")
    pipeline.save_pretrained(tmp_path, max_shard_size="30MB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 4
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOUSE)}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), "bf16"], env=environment, capture_output=True, text=True, check=True
    )
    held, needed = json.loads(done.stdout)
    assert needed > 50e6 and held < 1.5 * needed, (held, needed)


# --- LoRA ---


def need_peft() -> None:
    """Skips the test where transformers asks for a peft that is not installed (5.24 for 0.22, which is not out)."""
    from transformers.integrations import peft

    needed, installed = getattr(peft, "MIN_PEFT_VERSION", "0"), metadata.version("peft")
    if Version(installed) < Version(needed):
        pytest.skip(f"transformers needs peft {needed}, and {installed} is installed")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """lora(name) -> a random LoRA file for that family, of its attention and, for SD, its text encoder."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    home, known = tmp_path_factory.mktemp("loras"), {}

    def file(name: str) -> Path:
        if name in known:
            return known[name]
        pipeline = made(name)
        torch.manual_seed(7)
        denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
        parts = {denoiser: ["to_q", "to_k", "to_v"]}
        if name == "stable-diffusion":
            parts["text_encoder"] = ["q_proj", "k_proj"]
        layers = {}
        for part, modules in parts.items():
            if part == "text_encoder":
                need_peft()
            config = LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=modules)
            getattr(pipeline, part).add_adapter(config, "made")
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(getattr(pipeline, part), adapter_name="made")
        type(pipeline).save_lora_weights(str(home), weight_name=f"{name}.safetensors", **layers)
        known[name] = home / f"{name}.safetensors"
        return known[name]

    return file


def test_a_lora_file_is_in_the_manifest_with_its_hash_and_scale(saved, lora, tmp_path):
    from hashlib import sha256

    file = lora("stable-diffusion")
    plain = recorded(saved("stable-diffusion"), tmp_path).image()
    trace = recorded(saved("stable-diffusion"), tmp_path, lora=f"{file}:0.5")
    assert not np.array_equal(trace.image(), plain)
    (entry,) = (own.as_dict() for own in trace.manifest.loras)
    assert len(entry.pop("weights_sample_sha256")) == 64
    assert entry == (
        {
            "name": "0_stable_diffusion",
            "file": file.name,
            "sha256": sha256(file.read_bytes()).hexdigest(),
            "scale": 0.5,
            "on": True,
            "fused": False,
            "parts": ["text_encoder", "unet"],
        }
    )


def test_the_scale_of_a_call_is_part_of_the_scale_in_the_manifest(saved, lora, tmp_path):
    pipeline = load(str(saved("stable-diffusion")), "cpu", lora=[f"{lora('stable-diffusion')}:0.5"])
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, steps=1, cross_attention_kwargs={"scale": 0.25})
        pipeline.set_adapters(["0_stable_diffusion"], [0.125])
        draw(pipeline, steps=1)
    one, two = open_collection(tmp_path / "run")
    assert one.manifest.loras[0].scale == two.manifest.loras[0].scale == 0.125
    np.testing.assert_array_equal(one.image(), two.image())


def test_switching_a_lora_is_noticed(saved, lora, tmp_path):
    pipeline = load(str(saved("stable-diffusion")), "cpu", lora=[f"{lora('stable-diffusion')}:0.5"])
    pipeline.set_adapters(["0_stable_diffusion"], [0.25])
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, steps=1)
        pipeline.disable_lora()
        draw(pipeline, steps=1)
    one, two = (trace.manifest.loras[0] for trace in open_collection(tmp_path / "run"))
    assert (one.scale, one.on) == (0.25, True) and (two.scale, two.on) == (0.25, False)


@pytest.mark.parametrize(
    ("name", "other"),
    [("stable-diffusion", "stable-diffusion-xl"), ("stable-diffusion", "flux"), ("flux", "stable-diffusion")],
)
def test_a_lora_that_was_made_for_another_model(name, other, saved, lora):
    with pytest.raises(BadLora, match=rf"{other}.safetensors does not fit this .*leave it out"):
        load(str(saved(name)), "cpu", lora=str(lora(other)))


def test_lora_files_that_are_none(saved, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "y.safetensors")
    (tmp_path / "z.bin").write_bytes(b"")
    for file, said in [
        ("x.safetensors", "does not fit"),
        ("y.safetensors", "does not fit"),
        ("z.bin", "convert it"),
        ("nothing.safetensors", "there is no LoRA file"),
        ("x.safetensors:much", "is no number"),
        ("x.safetensors:nan", "is no number"),
    ]:
        with pytest.raises(ToushiError, match=said):
            load(str(saved("stable-diffusion")), "cpu", lora=str(tmp_path / file))


def test_a_pipeline_that_takes_no_lora(saved, lora):
    with pytest.raises(BadLora, match="takes no LoRA"):
        load(str(saved("pixart")), "cpu", lora=str(lora("flux")))


# --- refusals ---


OPTIONS = [{"offload": "group"}, {"vae_tiling": True}, {"compile": True}, {"engine": "diffusers"}]


@pytest.mark.parametrize("option", [*OPTIONS, {"embedding_cache": "texts"}])
def test_options_that_make_no_sense_for_mini_unet(option):
    name = "--" + next(iter(option)).replace("_", "-")
    with pytest.raises(BadOption, match=f"{name} makes no sense for mini-unet: .*leave it out"):
        load("mini-unet", "cpu", **option)


def test_an_unknown_dtype_or_option(fails, tmp_path):
    assert "fp32" in fails("trace", "cat", "--dtype", "int3", "--out", tmp_path)
    with pytest.raises(BadOption, match="dtype must be one of fp32, bf16, fp16; 'int3' came"):
        load("mini-unet", dtype="int3")
    with pytest.raises(BadOption, match="dtype must be one of"):
        load("mini-unet", dtype=torch.int8)
    with pytest.raises(BadOption, match="offload must be one of none, model"):
        load("mini-unet", offload="disk")
    with pytest.raises(BadOption, match="did you mean offload"):
        load("mini-unet", offloading="model")


@pytest.mark.parametrize(
    ("library", "option"), [("accelerate", {"offload": "model"}), ("peft", {"lora": __file__ + ".safetensors"})]
)
def test_a_library_that_is_not_here(library, option, monkeypatch):
    find = loading_module.find_spec
    monkeypatch.setattr(loading_module, "find_spec", lambda name: None if name == library else find(name))
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    with pytest.raises(
        BadOption, match=rf'{library} is not installed.*pip install "toushi\[pipelines\]", or load without'
    ):
        LoadOptions(**option)


def test_four_bits_without_the_library_or_without_a_gpu(saved, monkeypatch):
    find = loading_module.find_spec
    there = set()
    monkeypatch.setattr(
        loading_module, "find_spec", lambda name: (name in there or None) if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(BadOption, match="pip install bitsandbytes"):
        load(str(saved("flux")), "cpu", quantize="4bit")
    there.add("bitsandbytes")
    with pytest.raises(BadOption, match="on a CUDA GPU only, and this is cpu"):
        load(str(saved("flux")), "cpu", quantize="4bit")


def test_four_bits_are_for_the_large_parts(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "diffusers.quantizers.pipe_quant_config.PipelineQuantizationConfig", lambda *a, **k: asked.append((a, k))
    )
    bnb_4bit_config(saved("flux"), torch.bfloat16)
    ((kind, how), named) = asked[0]
    assert kind == "bitsandbytes_4bit" and how["load_in_4bit"] and how["bnb_4bit_compute_dtype"] == torch.bfloat16
    assert set(named["components_to_quantize"]) == {"text_encoder", "text_encoder_2", "transformer"}


def test_folders_that_are_no_pipeline(tmp_path):
    for content, said in [(None, "expected mini-unet"), ("{}", "save_pretrained"), ("{", "download it again")]:
        if content is not None:
            (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(UnknownModel, match=said):
            load(str(tmp_path), "cpu")


@pytest.mark.parametrize("engine", ["own", "diffusers"])
def test_missing_shards(engine, tmp_path):
    made("z-image").save_pretrained(tmp_path, max_shard_size="20kB")
    files = sorted((tmp_path / "transformer").glob("*.safetensors"))
    files[1].unlink()
    with pytest.raises(UnknownModel, match=f"lacks 1 of its {len(files)} weight files.* {files[1].name}: .*again"):
        load(str(tmp_path), "cpu", engine=engine)
    index = next((tmp_path / "transformer").glob("*.index.json"))
    index.write_text(index.read_text().replace(files[0].name, "../../../etc/passwd"))
    with pytest.raises(UnknownModel, match="do not trust this folder"):
        load(str(tmp_path), "cpu", engine=engine)


def test_a_size_that_the_model_cannot_draw(fails, tmp_path):
    pipeline = made("flux")  # cells of 4 pixels: the tiny VAE halves once
    with pytest.raises(ToushiError, match="multiples of 4, but 30x48 came; the nearest is 32x48"):
        generate(pipeline, "cat", size=(30, 48))
    said = fails("trace", "cat", "--model", "nowhere", "--size", "30x33", "--out", tmp_path / "run")
    assert "multiples of 16" in said and "32x32" in said


CPU_SAYS = "[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


@pytest.mark.parametrize(
    "error", [RuntimeError(CPU_SAYS), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]
)
def test_out_of_memory_says_which_setting_to_change(error, saved, monkeypatch):
    import diffusers

    def fail(*arguments, **named):
        raise error

    def said(**options) -> str:
        with pytest.raises(OutOfMemory) as refusal:
            generate(load(str(saved("flux")), "cpu", **options), "cat", size=(64, 64))
        return str(refusal.value)

    with monkeypatch.context() as patched:
        patched.setattr(diffusers.FluxTransformer2DModel, "forward", fail)
        advice = said()
        assert "--dtype bf16 (now fp32)" in advice and "--size 32x32 (now 64x64)" in advice and "vae-tiling" in advice
        advice = said(dtype="bf16", vae_tiling=True)
        assert "--dtype" not in advice and "--vae-tiling" not in advice and "\n" not in advice
    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "from_pretrained", fail)
    assert "not enough memory for the model" in said()


def test_the_next_cheaper_setting_on_a_gpu():
    from toushi.probe.pipelines.out_of_memory import memory_advice

    assert memory_advice(LoadOptions(device="cuda"), None)[0] == "take --offload model (now none)"
    assert memory_advice(LoadOptions(device="cuda", offload="model"), None)[0] == "take --offload group (now model)"
    assert "smaller model" in memory_advice(LoadOptions(device="cpu", dtype="bf16"), None)[0]


def test_other_errors_are_not_called_out_of_memory():
    from toushi.probe.pipelines.out_of_memory import explain_out_of_memory

    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("it", None):
        raise RuntimeError("shape mismatch")
