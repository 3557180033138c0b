"""The families of lit_align/policies/tiny_images.py, for the tests that run over all families."""

from lit_align.policies.chroma import Chroma
from lit_align.policies.hunyuan_dit import HunyuanDiT
from lit_align.policies.kolors import Kolors
from lit_align.policies.lumina2 import Lumina2
from lit_align.policies.packing import pack
from lit_align.policies.pixart import PixArtAlpha, PixArtSigma
from lit_align.policies.sana import Sana

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}  # Sana's own, DPM-Solver++, is of second order
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
BINNED = {"use_resolution_binning": False}
IMAGES = {  # arguments of the policy; of the pipeline, from noise and guidance scale
    Sana: ({"resolution": (32, 64), "max_sequence_length": 48, "scheduler": EULER}, lambda x, w: {"latents": x, "guidance_scale": w, **BINNED}),
    PixArtAlpha: ({"resolution": (16, 24), "max_sequence_length": 48, "scheduler": DDIM}, lambda x, w: {"latents": x, "guidance_scale": w, **BINNED}),
    PixArtSigma: ({"resolution": (16, 24), "max_sequence_length": 48, "scheduler": DDIM}, lambda x, w: {"latents": x, "guidance_scale": w, **BINNED}),
    Lumina2: ({"resolution": (32, 48), "max_sequence_length": 256}, lambda x, w: {"latents": x, "guidance_scale": w}),
    Chroma: ({"resolution": (16, 24), "max_sequence_length": 48}, lambda x, w: {"latents": pack(x), "guidance_scale": w}),
    HunyuanDiT: ({"resolution": (32, 48), "scheduler": DDIM}, lambda x, w: {"latents": x, "guidance_scale": w, **BINNED}),
    Kolors: ({"resolution": (16, 24)}, lambda x, w: {"latents": x, "guidance_scale": w}),
}  # fmt: skip
BLOCKS = {Sana: 2, PixArtAlpha: 2, PixArtSigma: 2, Lumina2: 4, Chroma: 3, HunyuanDiT: 2, Kolors: 5}
SMALL_IMAGES = {  # of text and images
    Sana: {"resolution": 32, "max_sequence_length": 16},
    PixArtAlpha: {"max_sequence_length": 16},
    PixArtSigma: {"max_sequence_length": 16},
    Lumina2: {"resolution": 16, "max_sequence_length": 24, "system_prompt": ""},
    Chroma: {"resolution": 16, "max_sequence_length": 16},
    HunyuanDiT: {"resolution": 16},
    Kolors: {"resolution": 16},
}
