"""What else diffusers draws with the families' models: from an image, into a hole in one, along a control image."""

import importlib
import inspect

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image

from tests.pipelines.diffusers_since import need
from tests.pipelines.tiny import made, scaled
from tests.pipelines.tiny_parts import clip, qwen_vl, template_length
from tests.pipelines.vocabularies import picture_tokenizer


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def hole(size: tuple[int, int]) -> Image.Image:
    mask = np.zeros(size, np.uint8)
    mask[:, size[1] // 2 :] = 255
    return Image.fromarray(mask)


def unet_control(pipeline):
    return diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 8))


def sd3_control(pipeline):
    return diffusers.SD3ControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, num_extra_conditioning_channels=0
    )


def flux_control(pipeline):
    return diffusers.FluxControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2
    )


def sana_control(pipeline):
    return diffusers.SanaControlNetModel(**like(pipeline.transformer, diffusers.SanaControlNetModel, num_layers=1))


def hunyuan_control(pipeline):
    kind = diffusers.HunyuanDiT2DControlNetModel
    return kind(**like(pipeline.transformer, kind, conditioning_channels=4, transformer_num_layers=4))


def like(model, kind, **own) -> dict:
    """What the configs have in common."""
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in model.config.items() if name in known} | own


def qwen_control(pipeline, **more: int):
    return diffusers.QwenImageControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, attention_head_dim=16, num_attention_heads=2, **more
    )


def qwen_inpaint_control(pipeline):
    return qwen_control(pipeline, extra_condition_channels=4)  # the hole lies beside the image


def z_image_control(channels: int):
    def control(pipeline):
        return diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=channels,
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )

    return control


def adapter(pipeline):
    """Of the T2I kind: convolutions, whose states are added to those of the U-Net."""
    channels = list(pipeline.unet.config.block_out_channels)
    return {"adapter": diffusers.T2IAdapter(3, channels, num_res_blocks=1, downscale_factor=2)}


def unclip_parts(pipeline):
    """The noise of StableUnCLIP's picture embedding, and the model that makes this embedding."""
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=32, patch_size=16, projection_dim=16,
    )  # fmt: skip
    tokenizer = pipeline.tokenizer
    prior = diffusers.PriorTransformer(
        num_attention_heads=1, attention_head_dim=8, num_layers=1, embedding_dim=16, num_embeddings=77
    )
    for name in ("clip_mean", "clip_std"):
        torch.nn.init.ones_(getattr(prior, name))
    return {
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=16),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "feature_extractor": transformers.CLIPImageProcessorPil(size=32, crop_size=32),
        "image_encoder": transformers.CLIPVisionModelWithProjection(config),
        "prior": prior,
        "prior_tokenizer": tokenizer,
        "prior_text_encoder": clip(tokenizer, 16, projection=16),
        "prior_scheduler": diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
    }


def depth_parts(pipeline):
    """The depth map is given, so nothing estimates it."""
    return {"depth_estimator": None, "feature_extractor": None}


def take_small_pictures(*modules: str) -> None:
    """From now on these pipelines resize a picture to 1,024 pixels, not to a million."""
    for name in modules:
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_{name}")
        resize = module.calculate_dimensions
        module.calculate_dimensions = lambda area, ratio, resize=resize: resize(32 * 32, ratio)


take_small_pictures("qwenimage_edit", "qwenimage_edit_plus", "qwenimage_edit_inpaint")


class PictureProcessor(transformers.Qwen2VLProcessor):
    """For pictures only. That for videos needs torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: object) -> type:
        return type(argument)


def picture_reader(pipeline):
    """An encoder that reads pictures, in parts of 8 x 8 pixels, before the prompt."""
    tokenizer = picture_tokenizer()
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    ids = {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    pictures = transformers.Qwen2VLImageProcessor(patch_size=4, min_pixels=16 * 16, max_pixels=64 * 64)
    return {
        "tokenizer": tokenizer,
        "processor": PictureProcessor(pictures, tokenizer, None),
        "text_encoder": qwen_vl(tokenizer, patch=4, **ids),
    }


def siglip_parts(pipeline):
    """SigLIP, and the VAE in the precision in which the pipeline calls it."""
    config = transformers.Siglip2VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=8, num_patches=16
    )
    return {
        "vae": pipeline.vae.bfloat16(),
        "siglip": transformers.Siglip2VisionModel(config),
        "siglip_processor": transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
    }


def lcm_scheduler(pipeline):
    return {"scheduler": diffusers.LCMScheduler()}


ALONE, FROM, INTO, ALONG, BESIDE = "", "from an image", "into a hole", "along an image", "beside an image"
DEPTH = "from an image and its depth"
VARIANTS = {  # class -> family, what it takes, and how its control network is made
    "StableDiffusionImg2ImgPipeline": ("stable-diffusion", FROM, None),
    "StableDiffusionInpaintPipeline": ("stable-diffusion", INTO, None),
    "StableDiffusionControlNetPipeline": ("stable-diffusion", ALONG, unet_control),
    "StableDiffusionControlNetImg2ImgPipeline": ("stable-diffusion", f"{ALONG}, {FROM}", unet_control),
    "StableDiffusionControlNetInpaintPipeline": ("stable-diffusion", f"{ALONG}, {INTO}", unet_control),
    "StableDiffusionAdapterPipeline": ("stable-diffusion", ALONG, None),
    "StableDiffusionDepth2ImgPipeline": ("stable-diffusion", DEPTH, None),
    "StableUnCLIPPipeline": ("stable-diffusion", ALONE, None),
    "StableUnCLIPImg2ImgPipeline": ("stable-diffusion", BESIDE, None),
    "StableDiffusionInstructPix2PixPipeline": ("stable-diffusion", BESIDE, None),
    "LatentConsistencyModelPipeline": ("stable-diffusion", ALONE, None),
    "LatentConsistencyModelImg2ImgPipeline": ("stable-diffusion", FROM, None),
    "StableDiffusionXLAdapterPipeline": ("stable-diffusion-xl", ALONG, None),
    "StableDiffusionXLImg2ImgPipeline": ("stable-diffusion-xl", FROM, None),
    "StableDiffusionXLInpaintPipeline": ("stable-diffusion-xl", INTO, None),
    "StableDiffusionXLControlNetPipeline": ("stable-diffusion-xl", ALONG, unet_control),
    "StableDiffusionXLControlNetImg2ImgPipeline": ("stable-diffusion-xl", f"{ALONG}, {FROM}", unet_control),
    "StableDiffusionXLControlNetInpaintPipeline": ("stable-diffusion-xl", f"{ALONG}, {INTO}", unet_control),
    "KolorsImg2ImgPipeline": ("kolors", FROM, None),
    "SanaControlNetPipeline": ("sana", ALONG, sana_control),
    "HunyuanDiTControlNetPipeline": ("hunyuan-dit", ALONG, hunyuan_control),
    "StableDiffusion3Img2ImgPipeline": ("stable-diffusion-3", FROM, None),
    "StableDiffusion3InpaintPipeline": ("stable-diffusion-3", INTO, None),
    "StableDiffusion3ControlNetPipeline": ("stable-diffusion-3", ALONG, sd3_control),
    "ZImageImg2ImgPipeline": ("z-image", FROM, None),
    "ZImageInpaintPipeline": ("z-image", INTO, None),
    "ZImageControlNetPipeline": ("z-image", ALONG, z_image_control(4)),
    "ZImageControlNetInpaintPipeline": ("z-image", f"{ALONG}, {INTO}", z_image_control(9)),
    "ZImageOmniPipeline": ("z-image", BESIDE, None),
    "FluxImg2ImgPipeline": ("flux", FROM, None),
    "FluxInpaintPipeline": ("flux", INTO, None),
    "FluxControlNetPipeline": ("flux", ALONG, flux_control),
    "FluxControlNetImg2ImgPipeline": ("flux", f"{ALONG}, {FROM}", flux_control),
    "FluxControlNetInpaintPipeline": ("flux", f"{ALONG}, {INTO}", flux_control),
    "FluxControlPipeline": ("flux", ALONG, None),
    "FluxControlImg2ImgPipeline": ("flux", f"{ALONG}, {FROM}", None),
    "FluxControlInpaintPipeline": ("flux", f"{ALONG}, {INTO}", None),
    "FluxKontextInpaintPipeline": ("flux", f"{BESIDE}, {INTO}", None),
    "FluxFillPipeline": ("flux", INTO, None),
    "FluxKontextPipeline": ("flux", BESIDE, None),
    "Flux2KleinInpaintPipeline": ("flux-2-klein", INTO, None),
    "QwenImageImg2ImgPipeline": ("qwen-image", FROM, None),
    "QwenImageInpaintPipeline": ("qwen-image", INTO, None),
    "QwenImageControlNetPipeline": ("qwen-image", ALONG, qwen_control),
    "QwenImageControlNetInpaintPipeline": ("qwen-image", ALONG, qwen_inpaint_control),
    "QwenImageEditPipeline": ("qwen-image", BESIDE, None),
    "QwenImageEditPlusPipeline": ("qwen-image", BESIDE, None),
    "QwenImageEditInpaintPipeline": ("qwen-image", f"{BESIDE}, {INTO}", None),
    "PixArtAlphaPipeline": ("pixart", ALONE, None),
    "ChromaImg2ImgPipeline": ("chroma", FROM, None),
}


UNCLIP = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 32}
OWN_MODELS = {  # what the family's tiny models do not have
    "StableDiffusionDepth2ImgPipeline": {"channels": 5},  # the depth lies beside the latents
    "StableDiffusionInstructPix2PixPipeline": {"channels": 8},  # the picture lies beside the latents
    "LatentConsistencyModelPipeline": {"time_cond_proj_dim": 8},  # guidance is an input of the U-Net
    "LatentConsistencyModelImg2ImgPipeline": {"time_cond_proj_dim": 8},
    "StableUnCLIPPipeline": UNCLIP,
    "StableUnCLIPImg2ImgPipeline": UNCLIP,
    "StableDiffusion3InpaintPipeline": {"channels": 16},  # it insists on the released number
    "ZImageOmniPipeline": {"siglip": 8, "refiners": 0},
    "FluxControlPipeline": {"channels": 32},  # the control image lies beside the latents
    "FluxControlImg2ImgPipeline": {"channels": 32},
    "FluxControlInpaintPipeline": {"channels": 32},
    "FluxFillPipeline": {"channels": 48},  # the image without the hole, and the hole
}


OWN_PARTS = {  # what else the pipeline is made of
    "StableDiffusionAdapterPipeline": adapter,
    "StableDiffusionXLAdapterPipeline": adapter,
    "StableDiffusionDepth2ImgPipeline": depth_parts,
    "StableUnCLIPPipeline": unclip_parts,
    "StableUnCLIPImg2ImgPipeline": unclip_parts,
    "QwenImageEditPipeline": picture_reader,
    "QwenImageEditPlusPipeline": picture_reader,
    "QwenImageEditInpaintPipeline": picture_reader,
    "ZImageOmniPipeline": siglip_parts,
    "LatentConsistencyModelPipeline": lcm_scheduler,
    "LatentConsistencyModelImg2ImgPipeline": lcm_scheduler,
}


def variant(name: str):
    """The pipeline, of the family's own tiny models."""
    need(name)
    family, _, control = VARIANTS[name]
    base = made(family, **OWN_MODELS.get(name, {}))
    components = dict(base.components)
    if control is not None:
        components["controlnet"] = control(base).eval().requires_grad_(False)
    for part, component in OWN_PARTS.get(name, lambda base: {})(base).items():
        is_module = isinstance(component, torch.nn.Module)
        components[part] = component.eval().requires_grad_(False) if is_module else component
    if "safety_checker" in components:
        components["requires_safety_checker"] = False
    kind = getattr(diffusers, name)
    taken = inspect.signature(kind.__init__).parameters
    found = kind(**{part: component for part, component in components.items() if part in taken})
    if hasattr(base, "prompt_template_encode_start_idx"):
        system = found.prompt_template_encode.partition("<|im_start|>user\n")
        found.prompt_template_encode_start_idx = template_length(found.tokenizer, "".join(system[:2]))
    found.set_progress_bar_config(disable=True)
    return found


def given(name: str, pipeline, size: tuple[int, int]) -> dict:
    """The images that it takes. Of four steps the last two are drawn."""
    _, takes, _ = VARIANTS[name]
    size = (64, 64) if name == "ZImageOmniPipeline" else scaled(pipeline, size)  # it takes no smaller picture
    known = inspect.signature(type(pipeline).__call__).parameters
    found = {}
    if ALONG in takes:
        found["control_image" if "control_image" in known else "image"] = picture(size)
    if "control_mask" in known:
        found["control_mask"] = hole(size)
    if INTO in takes:
        found |= {"image": picture(size), "mask_image": hole(size)}
    if FROM in takes or BESIDE in takes:
        found["image"] = picture(size)
    if takes == DEPTH:
        found |= {"image": picture(size), "depth_map": torch.rand(1, *size, generator=torch.Generator().manual_seed(0))}
    if "_auto_resize" in known:
        found |= {"_auto_resize": False, "max_area": size[0] * size[1]}  # else about a million pixels
    if "strength" in known:
        found["strength"] = 0.5
    return found
