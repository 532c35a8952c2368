"""Tiny pipelines of diffusers' families, made from configs with random weights: no file, no network, no time."""

import inspect
from collections.abc import Callable

import diffusers
import pytest
import torch
import transformers
from diffusers.guiders import AdaptiveProjectedMixGuidance
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from tokenizers.processors import TemplateProcessing

from tests.pipelines.diffusers_since import need
from tests.pipelines.vocabularies import (
    bert_tokenizer,
    chatglm_tokenizer,
    clip_tokenizer,
    gemma_tokenizer,
    mistral_tokenizer,
    picture_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
)

# Families whose text encoder attends elsewhere, so that only its states are recorded, with the class of the encoder.
HIDDEN = {"sana": "Gemma2Model", "lumina-2": "Gemma2Model"}
if int(transformers.__version__.partition(".")[0]) < 5:
    HIDDEN = dict.fromkeys(("pixart", "flux", "chroma"), "T5EncoderModel") | {"auraflow": "UMT5EncoderModel"}
PROMPT = "一只 red cat on the left, 月亮，moon"
NEGATIVE = "blue 猫"


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


def gemma(tokenizer):
    config = transformers.Gemma2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.Gemma2Model(config)


def vae(channels: int = 4, levels: int = 2, **more):
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[8] * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **more,
    )


FLOW = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


def unet(text: int, channels: int = 4, **more):
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
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


def stable_diffusion(**more):
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(16, **more),
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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(channels, **FLOW),
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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, **FLOW),
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
    pipeline = diffusers.ZImagePipeline(
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
            **({"siglip_feat_dim": siglip} if siglip else {}),
        ),
    )
    for pad in (pipeline.transformer.x_pad_token, pipeline.transformer.cap_pad_token):
        torch.nn.init.zeros_(pad)  # diffusers 0.36 leaves them as the memory was
    return pipeline


def flux_2_transformer(guidance: bool):
    config = dict(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    if "guidance_embeds" in inspect.signature(diffusers.Flux2Transformer2DModel.__init__).parameters:
        config["guidance_embeds"] = guidance  # diffusers 0.36 always has them
    return diffusers.Flux2Transformer2DModel(**config)


def flux_2_components() -> dict:
    """Those of FLUX.2 Klein."""
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
    return dict(
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
        transformer=flux_2_transformer(guidance=False),
    )


def flux_2_klein():
    need("Flux2KleinPipeline")
    return diffusers.Flux2KleinPipeline(**flux_2_components())


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


def qwen_vl(tokenizer, layers: int = 2, patch: int = 14, **ids: int):
    """Qwen2.5-VL, which reads the prompts of Qwen-Image and LongCat-Image. `ids`: of the tokens for pictures."""
    text = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        rope_scaling={"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]},
        max_position_embeddings=2048,
    )
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=16, patch_size=patch)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen_image():
    tokenizer = qwen_tokenizer()
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


def template_length(tokenizer, template: str) -> int:
    """Tokens before the prompt. The real tokenizer needs 34, which the pipeline takes for granted."""
    return len(tokenizer(template.partition("{}")[0]).input_ids)


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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
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
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(levels=4, **FLOW),
        text_encoder=gemma(tokenizer),
        tokenizer=tokenizer,
    )


def flux_2():
    tokenizer = mistral_tokenizer()
    text = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=31,  # the states of layers 10, 20 and 30 go on
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
    )
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    klein = flux_2_components()
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **text}, vision_config={"model_type": "pixtral", **vision}
    )
    return diffusers.Flux2Pipeline(
        scheduler=klein["scheduler"],
        vae=klein["vae"],
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=flux_2_transformer(guidance=True),
    )


def packed_transformer(kind: type, channels: int, **more):
    """A denoiser of FLUX.1's design."""
    return kind(
        patch_size=1,
        in_channels=channels,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        **more,
    )


def longcat_image():
    need("LongCatImagePipeline")
    tokenizer = qwen_tokenizer()
    made = diffusers.LongCatImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(16, **FLOW),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=tokenizer,  # of which only its tokenizer is needed here
        transformer=packed_transformer(diffusers.LongCatImageTransformer2DModel, 64, pooled_projection_dim=16),
    )
    made.tokenizer_max_length = 48
    return made


def ovis_image():
    tokenizer = qwen_tokenizer()
    config = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, head_dim=8)
    text_encoder = transformers.Qwen3Model(
        transformers.Qwen3Config(**config, num_key_value_heads=1, vocab_size=len(tokenizer))
    )
    made = diffusers.OvisImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, **FLOW),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=packed_transformer(diffusers.OvisImageTransformer2DModel, 16, out_channels=16),
    )
    made.user_prompt_begin_id = len(tokenizer(f"<|im_start|>user\n{made.system_prompt}").input_ids)
    return made


def with_bos(tokenizer):
    """The tokenizer of a language model that reads prompts without a template."""
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def ernie_image():
    need("ErnieImagePipeline")
    tokenizer = with_bos(mistral_tokenizer())
    text = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
    )
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **text}, vision_config={"model_type": "pixtral", **vision}
    )
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
        text_encoder=transformers.Mistral3Model(config),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def cogview_4():
    tokenizer = with_bos(mistral_tokenizer())
    config = transformers.GlmConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(config),
        vae=vae(4, **FLOW),
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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def chroma():
    tokenizer = t5_tokenizer()
    return diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, **FLOW),
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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def hunyuan_image(refiners: int = 1):
    tokenizer = qwen_tokenizer()
    glyphs = transformers.ByT5Tokenizer()
    made = diffusers.HunyuanImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
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


MAKERS: dict[str, Callable] = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-xl": stable_diffusion_xl,
    "kolors": kolors,
    "pixart": pixart,
    "sana": sana,
    "hunyuan-dit": hunyuan_dit,
    "stable-diffusion-3": stable_diffusion_3,
    "z-image": z_image,
    "lumina-2": lumina_2,
    "flux": flux,
    "flux-2": flux_2,
    "flux-2-klein": flux_2_klein,
    "qwen-image": qwen_image,
    "longcat-image": longcat_image,
    "ovis-image": ovis_image,
    "ernie-image": ernie_image,
    "hunyuan-image": hunyuan_image,
    "cogview-4": cogview_4,
    "chroma": chroma,
    "auraflow": auraflow,
}
# Those that `make test` draws; the others share their mechanisms, and are marked slow.
COMMON = {"stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux", "z-image", "qwen-image"}
QUICK = COMMON | {"hunyuan-dit", "kolors", "lumina-2", "pixart"}


def families(quick: set[str]) -> list:
    """Parameters for all families; those that are not in `quick` are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]


# Pipelines that take 8 pixels to a latent cell, or sizes in larger multiples, for granted.
PIXELS = {"Sana": 2, "HunyuanDiT": 4, "Lumina2": 4}


def scaled(pipeline, size: tuple[int, int]) -> tuple[int, int]:
    """So many pixels that the latents have half of `size`."""
    times = next((times for name, times in PIXELS.items() if type(pipeline).__name__.startswith(name)), 1)
    return size[0] * times, size[1] * times


def made(name: str, **how):
    """The same weights each time, without dropout or progress bar."""
    torch.manual_seed(0)
    pipeline = MAKERS[name](**how)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


LENGTHS = {"ZImage": 96, "Ovis": 96, "Flux2Klein": 96, "Flux2Pipeline": 352, "Lumina2": 288}


def draw(pipeline, prompt=PROMPT, *, size=(32, 32), seed=0, steps=2, guidance=True, negative=None, **named):
    """Pictures in few steps, with what this pipeline calls guidance on or off."""
    height, width = scaled(pipeline, size)
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if getattr(pipeline, "guider", None) is not None:  # guidance is no argument of the call
        pipeline.guider._enabled = guidance
        named |= {"negative_prompt": negative}
    elif "true_cfg_scale" in parameters:
        named |= {"true_cfg_scale": 3.0, "negative_prompt": negative or " "} if guidance else {"true_cfg_scale": 1.0}
    else:
        named |= {"guidance_scale": 3.0 if guidance else 0.0}
        if negative is not None and "negative_prompt" in parameters:
            named |= {"negative_prompt": negative}
    if isinstance(prompt, list) and isinstance(named.get("negative_prompt"), str):
        named["negative_prompt"] = [named["negative_prompt"]] * len(prompt)
    for name, value in (
        ("use_resolution_binning", False),
        ("clean_caption", False),
        ("max_sequence_length", 48),
        ("enable_prompt_rewrite", False),
    ):
        if name in parameters:
            named.setdefault(name, value)
    for name, length in LENGTHS.items():
        if type(pipeline).__name__.startswith(name):
            named["max_sequence_length"] = length
    named |= {"height": height, "width": width} if "height" in parameters else {}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt=prompt, num_inference_steps=steps, generator=generator, **named).images
