"""Tiny pipelines of the families whose images attend to the text by cross-attention."""

import diffusers
import torch
import transformers
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

from tests.pipelines.tiny_parts import UNCHECKED, clip, flow_scheduler, gemma, t5, unet, vae
from tests.pipelines.vocabularies import (
    bert_tokenizer,
    chatglm_tokenizer,
    clip_tokenizer,
    gemma_tokenizer,
    t5_tokenizer,
)


def stable_diffusion(**more):
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(16, **more),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        **UNCHECKED,
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


def kolors():
    tokenizer = chatglm_tokenizer()
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=256,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        bias_dropout_fusion=False,
        original_rope=True,
        use_cache=True,
    )
    encoder = ChatGLMModel(config, empty_init=False)
    for name, weight in encoder.named_parameters():
        if "norm" in name:  # left as the memory was
            torch.nn.init.ones_(weight)
    return diffusers.KolorsPipeline(
        vae=vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(
            16,
            encoder_hid_dim=16,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
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


def sana():
    tokenizer = gemma_tokenizer()
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(tokenizer),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41,
        ),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
        ),
        scheduler=flow_scheduler(shift=3.0),
    )


def hunyuan_dit():
    first, second = bert_tokenizer(), t5_tokenizer()
    bert = transformers.BertConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=len(first),
        max_position_embeddings=80,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=vae(levels=4),
        text_encoder=transformers.BertModel(bert),
        tokenizer=first,
        text_encoder_2=t5(second, 24),
        tokenizer_2=second,
        transformer=diffusers.HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=16,
            hidden_size=16,
            num_layers=4,
            cross_attention_dim=16,
            cross_attention_dim_t5=24,
            pooled_projection_dim=16,
            mlp_ratio=2.0,
        ),
        scheduler=diffusers.DDPMScheduler(),
        **UNCHECKED,
    )


CROSS = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-xl": stable_diffusion_xl,
    "kolors": kolors,
    "pixart": pixart,
    "sana": sana,
    "hunyuan-dit": hunyuan_dit,
}
