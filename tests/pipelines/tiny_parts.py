"""Parts of tiny pipelines: text encoders, VAEs, denoisers that several families share."""

import inspect

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as flow_scheduler
from tokenizers.processors import TemplateProcessing

from tests.pipelines.vocabularies import qwen_tokenizer

# Of pipelines that could have a safety checker.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


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


def language_sizes(tokenizer, layers: int = 3, **more) -> dict:
    """The sizes of a language model that reads prompts."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    return sizes | {"num_hidden_layers": layers, "vocab_size": len(tokenizer)} | more


def gemma(tokenizer):
    sizes = language_sizes(tokenizer, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=512)
    config = transformers.Gemma2Config(**sizes)
    return transformers.Gemma2Model(config)


def qwen_3(tokenizer, layers: int = 3, kind=transformers.Qwen3Model):
    return kind(transformers.Qwen3Config(**language_sizes(tokenizer, layers, max_position_embeddings=512)))


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


def mistral_3(tokenizer, layers: int = 3, kind=transformers.Mistral3Model):
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    text = {"model_type": "mistral", **language_sizes(tokenizer, layers)}
    return kind(transformers.Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", **vision}))


def with_bos(tokenizer):
    """The tokenizer of a language model that reads prompts without a template."""
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def template_length(tokenizer, template: str) -> int:
    """Tokens before the prompt. The real tokenizer needs 34, which the pipeline takes for granted."""
    return len(tokenizer(template.partition("{}")[0]).input_ids)


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


def flow_parts(channels: int = 4, **more) -> dict:
    """Scheduler and VAE of a family that matches flows."""
    return {"scheduler": flow_scheduler(), "vae": vae(channels, **more, **FLOW)}


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
    return dict(
        scheduler=flow_scheduler(),
        vae=diffusers.AutoencoderKLFlux2(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=qwen_3(tokenizer, 28, transformers.Qwen3ForCausalLM),  # the states of layers 9, 18 and 27 go on
        tokenizer=tokenizer,
        transformer=flux_2_transformer(guidance=False),
    )
