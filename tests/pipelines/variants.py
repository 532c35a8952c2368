"""What else diffusers draws with the families' models: from an image, into a hole in one, along a control image."""

import inspect

import diffusers
import numpy as np
from PIL import Image

from tests.pipelines.diffusers_since import need
from tests.pipelines.tiny import made, scaled


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
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


def qwen_control(pipeline):
    return diffusers.QwenImageControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, attention_head_dim=16, num_attention_heads=2
    )


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


ALONE, FROM, INTO, ALONG, BESIDE = "", "from an image", "into a hole", "along an image", "beside an image"
VARIANTS = {  # class -> family, what it takes, and how its control network is made
    "StableDiffusionImg2ImgPipeline": ("stable-diffusion", FROM, None),
    "StableDiffusionInpaintPipeline": ("stable-diffusion", INTO, None),
    "StableDiffusionControlNetPipeline": ("stable-diffusion", ALONG, unet_control),
    "StableDiffusionControlNetImg2ImgPipeline": ("stable-diffusion", f"{ALONG}, {FROM}", unet_control),
    "StableDiffusionControlNetInpaintPipeline": ("stable-diffusion", f"{ALONG}, {INTO}", unet_control),
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
    "FluxImg2ImgPipeline": ("flux", FROM, None),
    "FluxInpaintPipeline": ("flux", INTO, None),
    "FluxControlNetPipeline": ("flux", ALONG, flux_control),
    "FluxControlNetImg2ImgPipeline": ("flux", f"{ALONG}, {FROM}", flux_control),
    "FluxControlNetInpaintPipeline": ("flux", f"{ALONG}, {INTO}", flux_control),
    "FluxControlPipeline": ("flux", ALONG, None),
    "FluxFillPipeline": ("flux", INTO, None),
    "FluxKontextPipeline": ("flux", BESIDE, None),
    "Flux2KleinInpaintPipeline": ("flux-2-klein", INTO, None),
    "QwenImageImg2ImgPipeline": ("qwen-image", FROM, None),
    "QwenImageInpaintPipeline": ("qwen-image", INTO, None),
    "QwenImageControlNetPipeline": ("qwen-image", ALONG, qwen_control),
    "PixArtAlphaPipeline": ("pixart", ALONE, None),
}


OWN_MODELS = {  # what the family's tiny models do not have
    "StableDiffusion3InpaintPipeline": {"channels": 16},  # it insists on the released number
    "FluxControlPipeline": {"channels": 32},  # the control image lies beside the latents
    "FluxFillPipeline": {"channels": 48},  # the image without the hole, and the hole
}


def variant(name: str):
    """The pipeline, of the family's own tiny models."""
    need(name)
    family, _, control = VARIANTS[name]
    base = made(family, **OWN_MODELS.get(name, {}))
    components = dict(base.components)
    if control is not None:
        components["controlnet"] = control(base).eval().requires_grad_(False)
    if "safety_checker" in components:
        components["requires_safety_checker"] = False
    kind = getattr(diffusers, name)
    taken = inspect.signature(kind.__init__).parameters
    found = kind(**{part: component for part, component in components.items() if part in taken})
    if hasattr(base, "prompt_template_encode_start_idx"):
        found.prompt_template_encode_start_idx = base.prompt_template_encode_start_idx
    found.set_progress_bar_config(disable=True)
    return found


def given(name: str, pipeline, size: tuple[int, int]) -> dict:
    """The images that it takes. Of four steps the last two are drawn."""
    _, takes, _ = VARIANTS[name]
    size = scaled(pipeline, size)
    known = inspect.signature(type(pipeline).__call__).parameters
    found = {}
    if ALONG in takes:
        found["control_image" if "control_image" in known else "image"] = picture(size)
    if INTO in takes:
        found |= {"image": picture(size), "mask_image": hole(size)}
    if FROM in takes or BESIDE in takes:
        found["image"] = picture(size)
    if BESIDE in takes:
        found |= {"_auto_resize": False, "max_area": size[0] * size[1]}  # else about a million pixels
    if "strength" in known:
        found["strength"] = 0.5
    return found
