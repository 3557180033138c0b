"""The families of lit_align/policies/tiny_images.py, for the tests that run over all families."""

from lit_align.diffusion.transition import CPS
from lit_align.policies.chroma import Chroma
from lit_align.policies.hunyuan_dit import HunyuanDiT
from lit_align.policies.kolors import Kolors
from lit_align.policies.latent_consistency import LatentConsistency
from lit_align.policies.lumina2 import Lumina2
from lit_align.policies.packing import pack
from lit_align.policies.pixart import PixArtAlpha, PixArtSigma
from lit_align.policies.sana import Sana
from lit_align.policies.sana_sprint import SanaSprint
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

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
    LatentConsistency: ({"resolution": (16, 24)}, lambda x, w: {"latents": x, "guidance_scale": 8.0}),
    SanaSprint: ({"resolution": (32, 64), "max_sequence_length": 48}, lambda x, w: {"latents": x, "guidance_scale": 4.5, "intermediate_timesteps": None, **BINNED}),
}  # fmt: skip
BLOCKS = {Sana: 2, PixArtAlpha: 2, PixArtSigma: 2, Lumina2: 4, Chroma: 3, HunyuanDiT: 2, Kolors: 5, LatentConsistency: 5, SanaSprint: 2}
STEPS = {LatentConsistency: CPS(1.0), SanaSprint: CPS(1.0)}  # the pipelines' own steps; they have no classifier-free guidance
DIFFUSION = {StableDiffusion, StableDiffusionXL, PixArtAlpha, PixArtSigma, HunyuanDiT, Kolors, LatentConsistency}  # the others are flows
SMALL_IMAGES = {  # of text and images
    StableDiffusion: {},
    StableDiffusionXL: {},
    StableDiffusion3: {},
    Sana: {"resolution": 32, "max_sequence_length": 16},
    PixArtAlpha: {"max_sequence_length": 16},
    PixArtSigma: {"max_sequence_length": 16},
    Lumina2: {"resolution": 16, "max_sequence_length": 24, "system_prompt": ""},
    Chroma: {"resolution": 16, "max_sequence_length": 16},
    HunyuanDiT: {"resolution": 16},
    Kolors: {"resolution": 16},
    LatentConsistency: {"resolution": 16},
    SanaSprint: {"resolution": 32, "max_sequence_length": 16},
}
