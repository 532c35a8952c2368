"""Each explanation on a model whose attention is built by hand, where the right answer is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.attribution.toy_model import GRID, PROMPT, WORDS, quadrant_masks, toy_model
from toushi import explain
from toushi.hooks.attention import AttentionHook
from toushi.hooks.watched_modules import is_watched
from toushi.probe.analysis.map_measures import MEASURES, best_iou, score_maps
from toushi.probe.analysis.maps import auc, mass_inside
from toushi.probe.attribution.attention_maps import ATTENTION_RULES, read_attention
from toushi.probe.attribution.denoising import CannotExplain, clean_latents, denoise_at
from toushi.probe.attribution.explain import METHODS, WORD_METHODS, explain_at
from toushi.probe.attribution.gradients import integrated_gradients
from toushi.probe.attribution.map_faithfulness import randomised_weights
from toushi.probe.attribution.word_scores import WordScores, without
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.text.alignment import UnknownWord, Word
from toushi.probe.text.word_changes import OverlappingWords

MASKS = quadrant_masks().numpy()
BOXES = [(0, 0, 4, 4), (0, 4, 4, 8), (4, 0, 8, 4), (4, 4, 8, 8)]
FOUR_WORDS = "左边是猫，右边月亮"  # 左边 是 猫 右边 月亮
LATENTS = torch.randn(1, 8, GRID, GRID, generator=torch.Generator().manual_seed(0))


def toy(strength=(1.0, 1.0, 1.0, 1.0)):
    return denoise_at(toy_model(strength), PROMPT, 0.5, latents=LATENTS)


def tiny(prompt: str = FOUR_WORDS):
    model = MiniUNet.tiny(layers=2)
    model.is_watched = is_watched  # as `load` does: its texts come from a cache
    return denoise_at(model, prompt, 0.5, latents=LATENTS)


def mean_of_latents(denoised):
    return denoised.mean((1, 2, 3))


def word_maps(denoising, method):
    return explain_at(denoising, mean_of_latents if method == "gradient-attention" else None, method)


MAP_METHODS = ("attention", "daam", "value-weighted", "gradient-attention", "ablation")


@pytest.mark.parametrize("method", MAP_METHODS)
def test_each_map_is_the_quadrant_of_its_word(method):
    maps = word_maps(toy(), method)
    assert maps.dims == ("word", "y", "x") and list(maps.word.values) == list(WORDS)
    for map, mask, other in zip(maps.values, MASKS, np.roll(MASKS, 1, axis=0)):
        scores = score_maps(map, mask, other)
        for name, measure in MEASURES.items():
            if measure.category != "complexity":
                assert scores[name] == pytest.approx(0.0 if name == "leak" else 1.0, abs=0.01), name


@pytest.mark.parametrize("method", WORD_METHODS)
def test_each_quadrant_is_explained_by_its_word(method):
    for index, box in enumerate(BOXES):
        expected = 0.5 * np.eye(4)[index]  # the velocity counts as often as the time says
        assert explain_at(toy(), box, method).values == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("method", WORD_METHODS)
def test_words_count_as_much_as_they_add(method):
    """Of the whole picture, the word of strength s has s * s of the squared change."""
    values = explain_at(toy((1.0, 2.0, 3.0, 4.0)), (0, 0, 8, 8), method).values
    assert values / values.sum() == pytest.approx(np.array([1, 4, 9, 16]) / 30, abs=0.005)


def test_a_mask_is_a_target_like_its_box():
    large = np.kron(MASKS[2], np.ones((8, 8)))
    for mask in (MASKS[2].astype(float), large):
        assert explain_at(toy(), mask, "ablation").values == pytest.approx(
            explain_at(toy(), BOXES[2], "ablation").values
        )


def test_baselines_do_not_find_the_quadrants():
    scores = {name: auc(explain_at(toy(), None, name).values[0], MASKS[0]) for name in ("blob", "noise")}
    assert scores["blob"] == pytest.approx(0.5, abs=0.01) and scores["noise"] == pytest.approx(0.5, abs=0.15)
    assert best_iou(explain_at(toy(), None, "blob").values[0], MASKS[0]) < 0.3
    assert mass_inside(explain_at(toy(), None, "other-word").values[0], MASKS[0]) < 0.01


def test_shuffled_weights_bring_every_map_to_chance():
    scores = {method: [] for method in MAP_METHODS}
    for seed in range(8):
        denoising = toy()
        with randomised_weights(denoising.model, seed):
            for method, values in scores.items():
                maps = word_maps(denoising, method).values
                values += [auc(map, mask) for map, mask in zip(maps, MASKS)]
    for method, values in scores.items():
        assert np.mean(values) == pytest.approx(0.5, abs=0.12), method


@pytest.mark.parametrize("method", WORD_METHODS)
def test_shuffled_weights_bring_the_right_word_to_chance(method):
    """Without its weights the model does not say which word the quadrant needs: each of the four is right as often."""
    right = []
    for seed in range(8):
        denoising = toy()
        with randomised_weights(denoising.model, seed):
            for index, box in enumerate(BOXES):
                right.append(np.argmax(explain_at(denoising, box, method).values) == index)
    assert np.mean(right) == pytest.approx(0.25, abs=0.2)


# --- against arithmetic


@pytest.mark.parametrize("denoising", [toy, tiny])
def test_integrated_gradients_add_up_to_the_difference(denoising):
    """With padding in place of the words: score of the prompt minus score of the padding, within the delta."""
    d = denoising()
    scores = WordScores(d, (0, 0, 4, 8))
    values, delta = integrated_gradients(d, read_attention(d), scores.score, scores.words)
    model, start = d.model, d.model.encoder.embed
    encoding = model.tokenizer.encode(d.prompt)
    in_word = [
        t.span is not None and any(w.start < t.span[1] and t.span[0] < w.end for w in scores.words)
        for t in encoding.tokens
    ]
    ids = torch.tensor([[model.tokenizer.pad if inside else id for id, inside in zip(encoding.ids, in_word)]])
    with start.register_forward_hook(lambda module, inputs, output: start.forward(ids)):
        padded = scores.score(d.denoised([d.prompt])).item()
    whole = scores.score(d.denoised([d.prompt])).item()
    assert abs(whole - padded) > 1e-3 and abs(delta) < 1e-3 * abs(whole - padded)
    assert values.sum().item() == pytest.approx(whole - padded, abs=abs(delta) + 1e-6)


def test_shapley_values_are_those_of_all_orders():
    """Five words, by brute force: the mean over all subsets of what the word adds, with Shapley's weights."""
    d = tiny()
    scores = WordScores(d, lambda denoised: denoised[:, 0, :4].square().mean((1, 2)).log())  # not additive
    assert len(scores.words) == 5
    value = {c: scores(torch.tensor([c], dtype=torch.float)).item() for c in itertools.product((0, 1), repeat=5)}
    expected = []
    for word in range(5):
        total = 0.0
        for choice in value:
            if not choice[word]:
                size, larger = sum(choice), (*choice[:word], 1, *choice[word + 1 :])
                weight = math.factorial(size) * math.factorial(4 - size) / math.factorial(5)
                total += weight * (value[larger] - value[choice])
        expected.append(total)
    values = explain_at(d, scores.score, "shapley").values
    assert values == pytest.approx(expected, abs=1e-5) and np.ptp(values) > 1e-4
    leave_one_out = [value[(1,) * 5] - value[tuple(int(k != word) for k in range(5))] for word in range(5)]
    assert explain_at(d, scores.score, "ablation").values == pytest.approx(leave_one_out, abs=1e-5)


def test_sampled_shapley_values_of_seven_words_add_up_too():
    d = tiny("左边是猫，右边月亮，河边银行")
    scores = WordScores(d, (0, 0, 4, 8))
    assert len(scores.words) == 7
    values = explain_at(d, (0, 0, 4, 8), "shapley", seed=1)
    whole = scores(torch.ones(1, 7)) - scores(torch.zeros(1, 7))
    assert values.values.sum() == pytest.approx(whole.item(), rel=1e-3)
    assert values.equals(explain_at(d, (0, 0, 4, 8), "shapley", seed=1))


def test_gradient_attention_is_that_of_finite_differences():
    """The probabilities of one head at one cell of the coarsest site are moved by hand, with an explicit softmax."""
    model, site = MiniUNet.tiny(layers=1).double(), "unet.middle.cross_attention"
    d = denoise_at(model, FOUR_WORDS, 0.5, latents=LATENTS.double())
    score = lambda denoised: denoised[:, :, :4].square().mean((1, 2, 3))  # noqa: E731
    maps = explain_at(d, score, "gradient-attention", sites=site, heads=[1])
    reading = read_attention(d, site, [1])
    word, y, x = np.unravel_index(maps.values.argmax(), maps.shape)
    span = WordScores(d, score).words[word].span
    columns = [t.column for t in reading.prompt.tokens if t.span and span[0] <= t.span[0] and t.span[1] <= span[1]]
    cell = int(y * maps.sizes["x"] + x)

    def moved_score(column: int, amount: float) -> float:
        def edit(call, value, output):
            probabilities = call.probabilities().transpose(2, 3).clone()
            probabilities[0, 1, cell, column] += amount
            return probabilities @ value

        with AttentionHook({site: model.unet.middle.cross_attention}, edit=edit):
            return score(d.evaluate([d.prompt], False)).item()

    expected = 0.0
    for column in columns:
        slope = (moved_score(column, 1e-4) - moved_score(column, -1e-4)) / 2e-4
        expected += max(0.0, slope * reading.sites[0].probabilities[0, column, y, x])
    assert expected > 0 and maps.values[word, y, x] == pytest.approx(expected, rel=1e-3)


def test_rollout_mixes_by_self_attention():
    """By hand: only the second site mixes cells, each with itself by half and with all others evenly."""
    d = tiny()
    cross, mixing = "unet.down.1.cross_attention", "unet.up.0.self_attention"
    reading = read_attention(d, [cross, mixing])
    first, second = reading.sites
    flow = first.probabilities.mean(0)
    mixed = np.einsum("tk,kc->tc", flow.reshape(len(flow), -1), second.probabilities.mean(0).reshape(16, 16))
    expected = (flow + mixed.reshape(flow.shape)) / 2
    assert ATTENTION_RULES["rollout"](reading) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(second.probabilities.sum(1), 1, atol=1e-5)


def test_rules_by_hand():
    d = tiny()
    reading = read_attention(d, "unet.*.cross_attention")
    finest = [site for site in reading.sites if site.probabilities.shape[-1] == GRID]
    single = read_attention(d, finest[0].site)
    heads = single.sites[0].probabilities
    assert ATTENTION_RULES["attention"](single) == pytest.approx(heads.mean(0))
    assert ATTENTION_RULES["daam"](single) == pytest.approx(heads.sum(0))
    weighted = (heads * single.sites[0].value_norms[..., None, None]).mean(0)
    assert ATTENTION_RULES["value-weighted"](single) == pytest.approx(weighted)
    assert read_attention(d, finest[0].site, [1]).sites[0].probabilities[0] == pytest.approx(heads[1])
    np.testing.assert_allclose(ATTENTION_RULES["attention"](reading).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_clean_latents_are_those_of_the_scheduler(name, prediction):
    diffusers = pytest.importorskip("diffusers")
    options = {} if name.startswith("Euler") else {"clip_sample": False}
    scheduler = getattr(diffusers, name)(prediction_type=prediction, **options)
    scheduler.set_timesteps(5)
    sample, output = torch.randn(2, 1, 4, 8, 8).unbind()
    timestep = scheduler.timesteps[2]
    if name.startswith("Euler"):
        scheduler.set_begin_index(2)
    expected = scheduler.step(output, timestep, sample).pred_original_sample
    torch.testing.assert_close(clean_latents(scheduler, output, sample, timestep, 2), expected, rtol=1e-4, atol=1e-4)


# --- the call


def test_the_public_call_from_a_seed_a_picture_and_latents():
    model = MiniUNet.tiny(layers=1)
    from_seed = explain(model, FOUR_WORDS, time=0.4, seed=3, size=64, steps=4)
    assert from_seed.shape == (5, 8, 8) or from_seed.sizes["y"] == 64 // model.vae.factor
    assert abs(from_seed.time - 0.4) < 0.2
    picture = model.sample(FOUR_WORDS, size=64, steps=2)
    from_picture = explain(model, FOUR_WORDS, image=picture, seed=3)
    from_latents = explain(model, FOUR_WORDS, latents=model.encode(picture), seed=3)
    assert from_picture.equals(from_latents) and not from_picture.equals(from_seed)
    assert list(explain(model, FOUR_WORDS, words=["月亮", "猫"], seed=3, size=64, steps=2).word.values) == [
        "猫",
        "月亮",
    ]


def test_an_explanation_leaves_the_model_as_it_was():
    model = MiniUNet.tiny(layers=1)
    before = np.asarray(model.sample(FOUR_WORDS, size=64, steps=2))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for method in METHODS:
        target = (0, 0, 4, 4) if method in ("gradient-attention", *WORD_METHODS) else None
        explain(model, FOUR_WORDS, target, method, words=["猫", "月亮"], size=64, steps=2)
    with randomised_weights(model):
        assert not np.array_equal(before, np.asarray(model.sample(FOUR_WORDS, size=64, steps=2)))
    assert np.array_equal(before, np.asarray(model.sample(FOUR_WORDS, size=64, steps=2)))
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in weights.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_mask_of_pixels_is_that_of_cells_and_one_word_needs_no_list():
    values = explain_at(toy(), (MASKS[0] * 255).astype(np.uint8)[:, ::-1], "ablation", words="月亮")
    assert values.values == pytest.approx([0.5], abs=0.01)


def test_leaving_out_words():
    words = [Word("red", 2, 5), Word("cat", 6, 9)]
    assert without("a red cat", words, [False, True]) == "a cat"
    assert without("a red cat", words, [True, True]) == "a red cat"
    assert without("a red cat", words, [False, False]) == "a"
    assert without("a red cat,\u3000two  dogs", words, [True, False]) == "a red ,\u3000two  dogs"


REFUSALS = [
    (dict(method="lime"), "unknown method 'lime'; there are attention"),
    (dict(method="shapley"), "shapley needs a target"),
    (dict(method="daam", target=(0, 0, 1, 1)), "daam takes no target"),
    (dict(method="ablation", target=(0, 0, 4, 9)), r"the box \(0, 0, 4, 9\) is empty or outside the picture"),
    (dict(method="ablation", target=(2, 2, 2, 4)), "is empty or outside the picture"),
    (dict(method="ablation", target=(0.0, 0.0, 4.0, 4.0)), "expected a function of latents, a mask, or a box"),
    (dict(method="ablation", target=np.zeros((8, 8))), "there is no region to explain"),
    (dict(method="ablation", target=np.full((8, 8), np.nan)), "there is no region to explain"),
    (dict(method="ablation", target=np.eye(512)), "there is no region to explain"),
    (dict(method="ablation", target="left"), "expected a function of latents, a mask, or a box"),
    (dict(method="ablation", target=lambda denoised: denoised.mean()), "one number for each of"),
    (dict(method="shapley", target=lambda denoised: 1.0), "one number for each of"),
    (
        dict(method="integrated-gradients", target=lambda d: d.detach().mean((1, 2, 3))),
        "no gradient of mini-unet reaches",
    ),
    (
        dict(method="gradient-attention", target=lambda d: d.detach().mean((1, 2, 3))),
        "no gradient of mini-unet reaches",
    ),
    (
        dict(method="gradient-attention", target=lambda d: torch.ones(len(d), requires_grad=True)),
        "does not depend on the attention",
    ),
    *((dict(heads=heads), "has the heads 0 to") for heads in ([7], [-1], [], 0, ["a"])),
    (dict(method="gradient-attention", target=(0, 0, 4, 4), heads=[-1]), "has the heads 0 to"),
    (dict(sites="unet.*self_attention"), "have no attention of the image to the text"),
    (dict(method="other-word", words=["猫"]), "needs at least two words"),
]


@pytest.mark.parametrize("options, message", REFUSALS)
def test_what_cannot_be_explained_is_refused_in_one_line(options, message):
    with pytest.raises(CannotExplain, match=message) as refusal:
        explain_at(tiny(), **options)
    assert "\n" not in str(refusal.value)


def test_the_call_refuses_what_it_cannot_begin_from():
    model = MiniUNet.tiny(layers=1)
    with pytest.raises(CannotExplain, match="no words to explain by"):
        explain(model, "，。", size=64)
    with pytest.raises(CannotExplain, match="expected a time above 0"):
        explain(model, FOUR_WORDS, time=0.0)
    with pytest.raises(CannotExplain, match="an image and latents came"):
        explain(model, FOUR_WORDS, image=Image.new("RGB", (64, 64)), latents=LATENTS)
    with pytest.raises(UnknownWord):
        explain_at(tiny(), words=["狗"])
    with pytest.raises(CannotExplain, match="'月亮' has no map"), pytest.warns(UserWarning, match="cut"):
        explain_at(tiny("猫" * 80 + "，月亮"), words=["月亮"])
    with pytest.raises(CannotExplain, match="rollout needs image self-attention"):
        explain_at(toy(), method="rollout")
    with pytest.raises(OverlappingWords, match="name each word once"):
        explain_at(toy(), (0, 0, 4, 4), "shapley", words=["猫", "猫"])
    with pytest.raises(CannotExplain, match=r"expected latents \[1, channel, y, x\]"):
        explain(model, FOUR_WORDS, latents=LATENTS.repeat(3, 1, 1, 1))
    with pytest.raises(CannotExplain, match="predicts NaN or infinity"):
        explain(model, FOUR_WORDS, latents=LATENTS * np.nan)
