"""What is read against a plain softmax in fp64 of the same queries and keys, and against what the peer read.

At every attention that can be named: of the image to the text, of the image to itself, of the text encoder. Before
storage; beside it what storing in fp16 adds. The peer is right on these: it only counts, where prompts have unequal
lengths, columns for the shorter one that it does not have, with nothing in them.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks import peer
from benchmarks.shapes import SMALL
from toushi.hooks.attention import AttentionHook, Call
from toushi.probe.model_check.observation import AttentionCall, explicit_softmax
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.family import Model
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

PROMPT = "左边是猫，右边是月亮，夜晚"
GOALS = {torch.float32: 2e-6, torch.bfloat16: 2e-4}


def softmax_of(call: Call) -> torch.Tensor:
    """softmax(q k^T * scale + mask) [row, head, column, query] in fp64, by the code of `toushi check`."""
    what = call.inputs
    captured = AttentionCall(call.site, what.query, what.key, what.mask, what.scale, what.first is not None)
    rows, _, queries, _ = call.shape
    return torch.stack([explicit_softmax(captured, row, range(queries)) for row in range(rows)]).mT


def differences(model: Model, draw: Callable[[], object]) -> tuple[dict[str, float], float]:
    """By site the largest difference of a probability from the plain softmax; and what storing in fp16 adds."""
    worst: dict[str, float] = {}
    rounded = [0.0]

    def see(call: Call) -> None:
        read = call.probabilities()
        worst[call.site] = max(worst.get(call.site, 0.0), (read - softmax_of(call)).abs().max().item())
        rounded[0] = max(rounded[0], (read.half() - read).abs().max().item())

    sites = {name: site.module for name, site in family_of(model).sites(model).items()}
    with AttentionHook(sites, see):
        draw()
    return worst, rounded[0]


def difference_from_peer(pipeline: Model, draw: Callable[[], object]) -> float:
    """The largest difference between the peer's maps and ours, of each row of the batch and its own branch."""
    theirs, worst = peer.record_attention(pipeline, draw), 0.0
    order = family_of(pipeline).branch_order  # in the batch
    with tempfile.TemporaryDirectory() as folder:
        with record(pipeline, folder + "/run", keep="mean", dtype="float32", pads=True):
            draw()
        trace = open_trace(folder + "/run")
        assert {one.layer_id for one in theirs} == set(trace.sites)
        for one in theirs:
            assert one.step_index is not None  # the peer keeps every step
            for branch, maps in zip(order, one.data[:, 0].float()):
                ours = torch.from_numpy(trace.files.step(one.step_index).read(f"{one.layer_id}/{branch}"))
                ours = ours.flatten(1).T  # [cell, column]
                if maps.shape != ours.shape:  # the peer has as many columns for every row as the longest has
                    maps = maps[:, : ours.shape[1]]
                worst = max(worst, (maps - ours).abs().max().item())
    return worst


def measure(model: MiniUNet, rounds: int, quick: bool = False) -> list[dict]:
    rows = []
    models = {"mini-unet": (model, lambda: model.sample(PROMPT, steps=3))}
    models |= {name: make(1 if quick else 2) for name, make in SMALL.items()}
    for name, (pipeline, draw) in models.items():
        for dtype, goal in GOALS.items():
            with cast_weights(pipeline, dtype):
                worst, rounded = differences(pipeline, draw)
            site = max(worst, key=worst.__getitem__)
            numbers = dict(difference=f"{worst[site]:.1e}", goal=f"{goal:.1e}", fp16_storage_adds=f"{rounded:.1e}")
            short = str(dtype).removeprefix("torch.")
            rows.append({"model": name, "dtype": short, "sites": len(worst), "worst_site": site, **numbers})
            compared = name != "mini-unet" and dtype == torch.float32 and peer.is_installed()
            rows[-1]["from_the_peer"] = f"{difference_from_peer(pipeline, draw):.1e}" if compared else ""
    return rows


@contextmanager
def cast_weights(model: Model, dtype: torch.dtype) -> Iterator[None]:
    """Our model's weights in this dtype; of a pipeline what autocast puts into it, attention for one."""
    if isinstance(model, MiniUNet):
        model.to(dtype)
        yield
        model.to(torch.float32)
    else:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            yield
