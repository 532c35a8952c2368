"""Stable Diffusion 3 and 3.5: image and text in one sequence, the image first.

Text: two CLIP encoders, whose states are joined feature by feature (77 columns), then T5, whose columns come behind and
may be left out. `encode_prompt` returns the prompt and the negative prompt. Padding is attended to.
Image: the latents are cut into patches of 2 x 2; each patch is a query and a key. In `attn` image and text attend to
each other. SD 3.5 medium also has `attn2`, where the image attends to the image.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import PatchPipeline, patch_grid, patch_pixels
from toushi.probe.pipelines.diffusers_family import SECOND_ENCODER, diffusers_family
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, JointSequence
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, unmasked_states
from toushi.probe.pipelines.size_estimate import CLIP_COLUMNS, padded_text_columns


def read_inputs(pipeline: PatchPipeline, inputs: Arguments) -> DenoiserInputs:
    """The text begins behind the image cells."""
    text = inputs["encoder_hidden_states"]
    rows, columns = grid = patch_grid(pipeline, inputs["hidden_states"])
    layout = JointSequence(image=0, text=rows * columns, columns=text.shape[1])
    return DenoiserInputs(grid, (text,), lambda: list(text.unbind()), (layout,) * len(text))


STABLE_DIFFUSION_3 = diffusers_family(
    "stable-diffusion-3",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    **prompts_in_one_call(
        [PromptPart(("text_encoder", "text_encoder_2")), PromptPart(("text_encoder_3",))],
        unmasked_states,
    ),
    embeddings="text_encoder.text_model.embeddings",
    layers="text_encoder.text_model.encoder.layers",
    read_inputs=read_inputs,
    cross_attention=("transformer.transformer_blocks.*.attn",),
    self_attention=("transformer.transformer_blocks.*.attn2",),
    joint=True,
    check=require_sdpa_processors("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"),
    unrecorded_attention={"text_encoder_2.*": SECOND_ENCODER, "text_encoder_3.*": SECOND_ENCODER},
    cell_pixels=patch_pixels,
    text_columns=lambda pipeline, tokens: CLIP_COLUMNS + padded_text_columns(pipeline),
)
