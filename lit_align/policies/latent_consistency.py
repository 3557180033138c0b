"""Latent consistency models (arXiv 2310.04378)."""

from lit_align.policies.stable_diffusion import StableDiffusion


class LatentConsistency(StableDiffusion):
    """Stable Diffusion distilled to 1 to 8 steps, with the guidance scale as an input: set the sampler's guidance_scale
    to 1 and its transition to CPS with a: 1, the published step."""

    pipeline_class = "LatentConsistencyModelPipeline"
