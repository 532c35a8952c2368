"""Tiny pipelines of the families whose images and text attend to each other in one sequence."""

import diffusers
import torch
import transformers
from diffusers.guiders import AdaptiveProjectedMixGuidance

from tests.pipelines.diffusers_since import need
from tests.pipelines.tiny_parts import (
    clip,
    flow_parts,
    flow_scheduler,
    flux_2_components,
    flux_2_transformer,
    gemma,
    language_sizes,
    mistral_3,
    packed_transformer,
    qwen_3,
    qwen_vl,
    t5,
    template_length,
    vae,
    with_bos,
)
from tests.pipelines.vocabularies import (
    clip_tokenizer,
    gemma_tokenizer,
    mistral_tokenizer,
    picture_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)


def stable_diffusion_3(channels: int = 4):
    first, second, third = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=channels,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=channels,
            pos_embed_max_size=32,
        ),
        **flow_parts(channels),
        text_encoder=clip(first, 16, projection=16),
        tokenizer=first,
        text_encoder_2=clip(second, 16, projection=16),
        tokenizer_2=second,
        text_encoder_3=t5(third, 32),
        tokenizer_3=third,
    )


def flux(channels: int = 16):
    first, second = clip_tokenizer(), t5_tokenizer()
    return diffusers.FluxPipeline(
        **flow_parts(),
        text_encoder=clip(first),
        tokenizer=first,
        text_encoder_2=t5(second),
        tokenizer_2=second,
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=channels,
            out_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    )


def z_image(tokenizer=None, refiners: int = 1, siglip: int | None = None):
    tokenizer = tokenizer or (picture_tokenizer() if siglip else qwen_tokenizer())
    pipeline = diffusers.ZImagePipeline(
        **flow_parts(),
        text_encoder=qwen_3(tokenizer),
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
            **({"siglip_feat_dim": siglip} if siglip else {}),
        ),
    )
    for pad in (pipeline.transformer.x_pad_token, pipeline.transformer.cap_pad_token):
        torch.nn.init.zeros_(pad)  # diffusers 0.36 leaves them as the memory was
    return pipeline


def lumina_2(refiners: int = 1):
    tokenizer = gemma_tokenizer()
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=16,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=refiners,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(512, 64, 64),
            cap_feat_dim=16,
        ),
        **flow_parts(levels=4),
        text_encoder=gemma(tokenizer),
        tokenizer=tokenizer,
    )


def flux_2():
    tokenizer = mistral_tokenizer()
    klein, kind = flux_2_components(), transformers.Mistral3ForConditionalGeneration
    return diffusers.Flux2Pipeline(
        scheduler=klein["scheduler"],
        vae=klein["vae"],
        text_encoder=mistral_3(tokenizer, 31, kind),  # the states of layers 10, 20 and 30 go on
        tokenizer=tokenizer,
        transformer=flux_2_transformer(guidance=True),
    )


def flux_2_klein():
    need("Flux2KleinPipeline")
    return diffusers.Flux2KleinPipeline(**flux_2_components())


def qwen_image():
    tokenizer = qwen_tokenizer()
    made = diffusers.QwenImagePipeline(
        scheduler=flow_scheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=qwen_vl(tokenizer),
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
    made.prompt_template_encode_start_idx = template_length(tokenizer, made.prompt_template_encode)
    return made


def longcat_image():
    need("LongCatImagePipeline")
    tokenizer = qwen_tokenizer()
    made = diffusers.LongCatImagePipeline(
        **flow_parts(16),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=tokenizer,  # of which only its tokenizer is needed here
        transformer=packed_transformer(diffusers.LongCatImageTransformer2DModel, 64, pooled_projection_dim=16),
    )
    made.tokenizer_max_length = 48
    return made


def ovis_image():
    tokenizer = qwen_tokenizer()
    text_encoder = qwen_3(tokenizer)
    made = diffusers.OvisImagePipeline(
        **flow_parts(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=packed_transformer(diffusers.OvisImageTransformer2DModel, 16, out_channels=16),
    )
    made.user_prompt_begin_id = len(tokenizer(f"<|im_start|>user\n{made.system_prompt}").input_ids)
    return made


def ernie_image():
    need("ErnieImagePipeline")
    tokenizer = with_bos(mistral_tokenizer())
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=24,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=16,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):
        torch.nn.init.normal_(layer.weight, std=0.1)  # they begin with zeros, and then nothing reads the text
    return diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=flux_2_components()["vae"],
        text_encoder=mistral_3(tokenizer),
        tokenizer=tokenizer,
        scheduler=flow_scheduler(),
    )


def cogview_4():
    tokenizer = with_bos(mistral_tokenizer())
    config = transformers.GlmConfig(**language_sizes(tokenizer, pad_token_id=tokenizer.pad_token_id))
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(config),
        **flow_parts(),
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=16,
            sample_size=16,
            rope_axes_dim=(16, 16),
        ),
    )


def chroma():
    tokenizer = t5_tokenizer()
    return diffusers.ChromaPipeline(
        **flow_parts(),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
        transformer=packed_transformer(
            diffusers.ChromaTransformer2DModel,
            16,
            approximator_num_channels=8,
            approximator_hidden_dim=8,
            approximator_layers=1,
        ),
    )


def auraflow():
    tokenizer = t5_tokenizer()
    config = transformers.UMT5Config(
        d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, vocab_size=len(tokenizer), pad_token_id=0
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.UMT5EncoderModel(config),
        vae=vae(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=256,
        ),
        scheduler=flow_scheduler(),
    )


def hunyuan_image(refiners: int = 1):
    tokenizer = qwen_tokenizer()
    glyphs = transformers.ByT5Tokenizer()
    made = diffusers.HunyuanImagePipeline(
        scheduler=flow_scheduler(),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=32,
            scaling_factor=0.5,
        ),
        text_encoder=qwen_vl(tokenizer, layers=4),  # the states of the last but two go on
        tokenizer=tokenizer,
        text_encoder_2=t5(glyphs),
        tokenizer_2=glyphs,
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=2,
            num_refiner_layers=refiners,
            text_embed_dim=16,
            text_embed_2_dim=16,
            rope_axes_dim=(4, 4),
        ),
        guider=AdaptiveProjectedMixGuidance(),
    )
    made.tokenizer_max_length, made.tokenizer_2_max_length = 96, 32
    made.prompt_template_encode_start_idx = template_length(tokenizer, made.prompt_template_encode)
    return made


JOINT = {
    "stable-diffusion-3": stable_diffusion_3,
    "flux": flux,
    "z-image": z_image,
    "lumina-2": lumina_2,
    "flux-2": flux_2,
    "flux-2-klein": flux_2_klein,
    "qwen-image": qwen_image,
    "longcat-image": longcat_image,
    "ovis-image": ovis_image,
    "ernie-image": ernie_image,
    "cogview-4": cogview_4,
    "chroma": chroma,
    "auraflow": auraflow,
    "hunyuan-image": hunyuan_image,
}
