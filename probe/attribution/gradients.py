"""Explanations by gradients: integrated gradients of the prompt's embeddings, and gradient times attention."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toushi.hooks.attention import AttentionHook, Call
from toushi.hooks.module_hooks import forward_parameters, input_hook
from toushi.probe.analysis.maps import mean_of_sites
from toushi.probe.attribution.attention_maps import AttentionReading, TokenMaps, head_indices
from toushi.probe.attribution.denoising import CannotExplain, Denoising
from toushi.probe.attribution.word_scores import Score, check_scores
from toushi.probe.base.extras import require
from toushi.probe.pipelines.family import submodule
from toushi.probe.session.row_matching import index_of_ids
from toushi.probe.text.alignment import Word, token_shares


def integrated_gradients(
    denoising: Denoising, reading: AttentionReading, score: Score, words: Sequence[Word], steps: int = 64
) -> tuple[Float[Tensor, " word"], float]:
    """What each word adds to the score on the straight way from padding to its embeddings, and the convergence delta.

    The words add up to score(prompt) - score(padding in place of the words), up to the delta. Only the embeddings of the
    recorded text encoder change; other encoders of the pipeline read the whole prompt. Sundararajan et al., "Axiomatic
    Attribution for Deep Networks", 2017; `captum.attr.LayerIntegratedGradients`. Raises CannotExplain.
    """
    require("captum")
    from captum.attr import LayerIntegratedGradients

    model, family = denoising.model, denoising.family
    if not family.embeddings:
        raise CannotExplain(f"{family.name}: the embeddings of its text encoder are not known to its family")
    if family.sequence_first:
        raise CannotExplain(f"{family.name}: its embeddings are [position, row, feature], which Captum cannot follow")
    embeddings = submodule(model, family.embeddings)
    ids = _ids_of_prompt(denoising, embeddings)
    start = index_of_ids(ids[0].tolist(), reading.prompt.ids)
    if start is None:
        raise CannotExplain(f"{family.name}: the text encoder did not read the ids of the prompt")
    shares = np.zeros((len(words), ids.shape[1]))
    for token, share in zip(reading.prompt.tokens, _shares(reading, words).T):
        if family.text_encoder.partition(".")[0] in token.encoders and start + token.position < ids.shape[1]:
            shares[:, start + token.position] = share
    baseline = ids.clone()
    baseline[0, shares.sum(0) > 0] = pad_id(model, family.text_encoder)

    def score_of_ids(rows: Int[Tensor, "b position"]) -> Float[Tensor, " b"]:
        # Only the embeddings get these ids: an encoder may look for <eos> among its own, and padding can be <eos>.
        with input_hook(embeddings, forward_parameters(embeddings)[0], lambda ids: rows):
            return check_scores(score(denoising.denoised([denoising.prompt] * len(rows), grad=True)), len(rows))

    layer = LayerIntegratedGradients(score_of_ids, embeddings)
    try:
        parts, delta = layer.attribute(
            ids, baseline, n_steps=steps, internal_batch_size=8, return_convergence_delta=True
        )
    except (RuntimeError, NotImplementedError) as error:
        raise CannotExplain(_no_gradient(denoising, error)) from error
    assert isinstance(parts, Tensor) and isinstance(delta, Tensor)
    return torch.from_numpy(shares) @ parts[0].sum(-1).double().cpu(), float(delta)


def gradient_attention(
    denoising: Denoising,
    reading: AttentionReading,
    score: Score,
    modules: Mapping[str, nn.Module],
    heads: Sequence[int] | None = None,
) -> TokenMaps:
    """The positive part of probability times d score / d probability, mean over heads, then over sites.

    Chefer et al., "Generic Attention-model Explainability", 2021, equation 5. The gradient is that of a zero matrix that
    is added to the probabilities: output + zero @ values. So the model's own kernels run, and everything behind the
    site, later attention too, depends on it. Raises CannotExplain where no gradient arrives.
    """
    zeros: dict[str, Tensor] = {}
    joint, cells = reading.joint, reading.grid[0] * reading.grid[1]
    queries = slice(None) if joint is None else slice(joint.image, joint.image + cells)
    keys = slice(None) if joint is None else slice(joint.text, joint.text + joint.columns)

    def add_zero(call: Call, value: Tensor, output: Tensor) -> Tensor:
        _, heads, count, _ = output[:, :, queries].shape
        values = value[:, :, keys].repeat_interleave(heads // value.shape[1], dim=1)
        zero = zeros[call.site] = output.new_zeros(1, heads, count, values.shape[2], requires_grad=True)
        changed = output.clone()
        changed[:, :, queries] = changed[:, :, queries] + zero @ values
        return changed

    with AttentionHook(modules, edit=add_zero):
        total = check_scores(score(denoising.denoised([denoising.prompt], grad=True)), 1).sum()
    try:
        gradients = dict(zip(zeros, torch.autograd.grad(total, list(zeros.values()), allow_unused=True)))
        if all(gradient is None for gradient in gradients.values()):
            raise RuntimeError("the target does not depend on the attention")
    except (RuntimeError, NotImplementedError) as error:
        raise CannotExplain(_no_gradient(denoising, error)) from error
    maps = []
    for site in reading.sites:
        if (gradient := gradients.get(site.site)) is not None:
            slope = gradient[0].transpose(1, 2).float().cpu().numpy().reshape(site.probabilities.shape)
            product = np.maximum(site.probabilities * slope, 0)
            maps.append(product[head_indices(heads, len(product), site.site)].mean(0))
    return mean_of_sites(maps)


def pad_id(model: object, text_encoder: str) -> int:
    """The id of padding in the vocabulary of this text encoder. Raises CannotExplain if it has none."""
    name = text_encoder.partition(".")[0].replace("text_encoder", "tokenizer")
    tokenizer = getattr(model, "tokenizer" if name == "encoder" else name)
    pad = getattr(tokenizer, "pad", None) if name == "encoder" else tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise CannotExplain(f"the tokenizer {type(tokenizer).__name__} has no padding to stand in for a word")
    return pad


def _ids_of_prompt(denoising: Denoising, embeddings: nn.Module) -> Int[Tensor, "1 position"]:
    """The ids whose embeddings the text encoder reads for the prompt."""
    calls: list[Tensor] = []
    # Not `argument_hooks`: where only those are open, a text may come from the model's cache without its encoder.
    with input_hook(embeddings, forward_parameters(embeddings)[0], calls.append):
        denoising.denoised([denoising.prompt])
    if len(calls) != 1:
        raise CannotExplain(
            f"{denoising.family.name}: expected one text for its encoder to embed, but {len(calls)} came"
        )
    return calls[0]


def _shares(reading: AttentionReading, words: Sequence[Word]) -> Float[np.ndarray, "word token"]:
    return np.stack([token_shares(reading.prompt.tokens, word.span) for word in words])


def _no_gradient(denoising: Denoising, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"no gradient of {denoising.family.name} reaches the prompt, as with quantised weights or inference mode: "
        f"load it unquantised, or use ablation or shapley ({reason:.120})"
    )
