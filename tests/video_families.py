"""The families of lit_align/policies/tiny_videos.py, for the tests that run over all families."""

from lit_align.policies.animate_diff import AnimateDiff
from lit_align.policies.cogvideox import CogVideoX
from lit_align.policies.flux_kontext import FluxKontext
from lit_align.policies.hunyuan_video import HunyuanVideo, HunyuanVideo15
from lit_align.policies.instruct_pix2pix import InstructPix2Pix
from lit_align.policies.ltx_video import LTXVideo
from lit_align.policies.model_scope import ModelScopeT2V
from lit_align.policies.packing import pack
from lit_align.policies.qwen_image_edit import QwenImageEdit, QwenImageEditPlus

LEADING = {"timestep_spacing": "leading"}  # with linspace, diffusers' DDIM steps beside its own grid
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}  # InstructPix2Pix' own, EulerAncestral, adds noise
VIDEOS = {  # arguments of the policy; of the pipeline, from noise and guidance scale
    LTXVideo: ({"resolution": (32, 64), "num_frames": 9, "max_sequence_length": 32}, lambda x, w: {"latents": x.flatten(2).transpose(1, 2), "guidance_scale": w}),
    CogVideoX: ({"resolution": (32, 48), "num_frames": 9}, lambda x, w: {"latents": x.transpose(1, 2), "guidance_scale": w}),
    ModelScopeT2V: ({"resolution": (16, 24), "num_frames": 3}, lambda x, w: {"latents": x, "guidance_scale": w}),
    AnimateDiff: ({"resolution": (16, 24), "num_frames": 3, "scheduler": LEADING}, lambda x, w: {"latents": x, "guidance_scale": w}),
    HunyuanVideo: ({"resolution": (32, 48), "num_frames": 5, "max_sequence_length": 600}, lambda x, w: {"latents": x, "guidance_scale": 6.0}),
    HunyuanVideo15: ({"resolution": (16, 24), "num_frames": 5}, lambda x, w: {"latents": x}),
}  # fmt: skip
EDITS = {
    FluxKontext: ({"resolution": (16, 24), "max_sequence_length": 32}, lambda x, w: {"latents": pack(x), "true_cfg_scale": w, "negative_prompt": "", "guidance_scale": 3.5, "max_area": 16 * 24, "_auto_resize": False}),
    QwenImageEdit: ({"resolution": (32, 48)}, lambda x, w: {"latents": pack(x), "true_cfg_scale": w, "negative_prompt": " "}),
    QwenImageEditPlus: ({"resolution": (32, 48)}, lambda x, w: {"latents": pack(x), "true_cfg_scale": w, "negative_prompt": " "}),
    InstructPix2Pix: ({"resolution": (16, 24), "scheduler": DDIM, "image_guidance_scale": 1.7}, lambda x, w: {"latents": x, "guidance_scale": w, "image_guidance_scale": 1.7}),
}  # fmt: skip
BLOCKS = {LTXVideo: 2, CogVideoX: 2, ModelScopeT2V: 5, AnimateDiff: 5, HunyuanVideo: 3, HunyuanVideo15: 2}
BLOCKS |= {FluxKontext: 3, QwenImageEdit: 2, QwenImageEditPlus: 2, InstructPix2Pix: 5}
DIFFUSION = {CogVideoX, ModelScopeT2V, AnimateDiff, InstructPix2Pix}  # the others are flows
SMALL_VIDEOS = {  # of text and frames
    LTXVideo: {"resolution": 32, "num_frames": 5, "max_sequence_length": 16},
    CogVideoX: {"num_frames": 1},
    ModelScopeT2V: {"resolution": 16, "num_frames": 2},
    AnimateDiff: {"resolution": 16, "num_frames": 2},
    HunyuanVideo: {"num_frames": 5, "max_sequence_length": 16},
    HunyuanVideo15: {"resolution": 16, "num_frames": 3},
}
SMALL_EDITS = {
    FluxKontext: {"max_sequence_length": 16},
    QwenImageEdit: {"resolution": 32},
    QwenImageEditPlus: {"resolution": 32},
    InstructPix2Pix: {},
}
