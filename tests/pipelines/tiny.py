"""Tiny pipelines of diffusers' families, made from configs with random weights: no file, no network, no time."""

import inspect
from collections.abc import Callable

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

PROMPT = "一只 red cat on the left, 月亮，moon"
NEGATIVE = "blue 猫"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ["red", "cat", "moon", "and", "blue", "is", "the", "on", "left", "猫", "月亮", "左边", "一只", "红色", "的"]


def merged(words: list[str], ends: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary that spells everything, and merges that join these words from left to right."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET)] if ends else [*ALPHABET]
    merges = []
    for word in words:
        pieces = list(letters.pre_tokenize_str(word)[0][0])
        if ends:
            pieces[-1] += "</w>"
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    merges = list(dict.fromkeys(merges))
    return {piece: index for index, piece in enumerate(dict.fromkeys(vocabulary))}, merges


def clip_tokenizer(pad: str = "<|endoftext|>"):
    vocabulary, merges = merged(PIECES, ends=True)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def t5_tokenizer(length: int = 512):
    """Knows no 月: it is <unk>, as every Chinese character is for the real one."""
    letters = [*map(chr, range(33, 127)), *"猫左边是右一只，。"]
    words = [f"▁{piece}" for piece in PIECES if piece.isascii()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocabulary += [(letter, -5.0) for letter in letters] + [(word, -1.0) for word in words]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=3, model_max_length=length)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer():
    vocabulary, merges = merged(PIECES, ends=False)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges, additional_special_tokens=specials[1:])
    made.chat_template = CHAT
    return made


def clip(tokenizer, width: int = 16, projection: int | None = None):
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5(tokenizer, width: int = 16):
    config = transformers.T5Config(
        d_model=width, d_ff=2 * width, d_kv=8, num_layers=2, num_heads=2, vocab_size=len(tokenizer)
    )
    return transformers.T5EncoderModel(config)


def vae(channels: int = 4, **more):
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **more,
    )


FLOW = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


def unet(text: int, **more):
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=text,
        attention_head_dim=[1, 2],
        **more,
    )


def stable_diffusion():
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(16),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl():
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(first),
        text_encoder_2=clip(second, 16, projection=16),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            transformer_layers_per_block=[2, 1],
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
        force_zeros_for_empty_prompt=True,
    )


def stable_diffusion_3():
    first, second, third = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=32,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(**FLOW),
        text_encoder=clip(first, 16, projection=16),
        tokenizer=first,
        text_encoder_2=clip(second, 16, projection=16),
        tokenizer_2=second,
        text_encoder_3=t5(third, 32),
        tokenizer_3=third,
    )


def flux():
    first, second = clip_tokenizer(), t5_tokenizer()
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, **FLOW),
        text_encoder=clip(first),
        tokenizer=first,
        text_encoder_2=t5(second),
        tokenizer_2=second,
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    )


def z_image(tokenizer=None, refiners: int = 1):
    tokenizer = tokenizer or qwen_tokenizer()
    config = transformers.Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
    )
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, **FLOW),
        text_encoder=transformers.Qwen3Model(config),
        tokenizer=tokenizer,
        transformer=diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=refiners,
            n_heads=2,
            n_kv_heads=2,
            norm_eps=1e-5,
            qk_norm=True,
            cap_feat_dim=16,
            rope_theta=256.0,
            t_scale=1000.0,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 64, 64],
        ),
    )


def flux_2_klein():
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,  # the states of layers 9, 18 and 27 go on
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
    )
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLFlux2(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=transformers.Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
    )


def pixart():
    tokenizer = t5_tokenizer()
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=vae(),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=16,
            patch_size=2,
            caption_channels=16,
            use_additional_conditions=False,
            norm_num_groups=4,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def qwen_image():
    tokenizer = qwen_tokenizer()
    text = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        rope_scaling={"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]},
        max_position_embeddings=2048,
    )
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=16)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    made = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    made.prompt_template_encode_start_idx = _template_length(tokenizer, made.prompt_template_encode)
    return made


def _template_length(tokenizer, template: str) -> int:
    """Tokens before the prompt. The real tokenizer needs 34, which the pipeline takes for granted."""
    return len(tokenizer(template.partition("{}")[0]).input_ids)


MAKERS: dict[str, Callable] = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-xl": stable_diffusion_xl,
    "stable-diffusion-3": stable_diffusion_3,
    "flux": flux,
    "z-image": z_image,
    "pixart": pixart,
    "qwen-image": qwen_image,
    "flux-2-klein": flux_2_klein,
}


def made(name: str, **how):
    """The same weights each time, without dropout or progress bar."""
    torch.manual_seed(0)
    pipeline = MAKERS[name](**how)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt=PROMPT, *, size=(32, 32), seed=0, steps=2, guidance=True, negative=None, **named):
    """Pictures in few steps, with what this pipeline calls guidance on or off."""
    height, width = size
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if "true_cfg_scale" in parameters:
        named |= {"true_cfg_scale": 3.0, "negative_prompt": negative or " "} if guidance else {"true_cfg_scale": 1.0}
    else:
        named |= {"guidance_scale": 3.0 if guidance else 0.0}
        if negative is not None and "negative_prompt" in parameters:
            named |= {"negative_prompt": negative}
    if isinstance(prompt, list) and isinstance(named.get("negative_prompt"), str):
        named["negative_prompt"] = [named["negative_prompt"]] * len(prompt)
    for name, value in (("use_resolution_binning", False), ("clean_caption", False), ("max_sequence_length", 48)):
        if name in parameters:
            named.setdefault(name, value)
    if type(pipeline).__name__ in ("ZImagePipeline", "Flux2KleinPipeline"):
        named["max_sequence_length"] = 96
    generator = torch.Generator().manual_seed(seed)
    return pipeline(
        prompt=prompt, height=height, width=width, num_inference_steps=steps, generator=generator, **named
    ).images
