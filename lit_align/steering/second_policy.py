"""A second network beside the policy, as guidance rules take it."""

import torch

from lit_align.policies.policy import Policy


def frozen(policy: Policy | None) -> Policy | None:
    """A policy that nothing trains."""
    return policy and policy.requires_grad_(False)


def check_alike(who: str, policy, other: Policy) -> None:
    """Raises ValueError unless the two denoise the same latents with the same noise. Calls of both count as one's."""
    if policy.latent_shape != other.latent_shape:
        raise ValueError(
            f"{who}: its policy denoises latents of shape {tuple(other.latent_shape)} and the sampled one "
            f"{tuple(policy.latent_shape)}: give both the same model family and resolution."
        )
    times = policy.process.timesteps(10)
    if type(policy.process) is not type(other.process) or not torch.allclose(
        policy.process.alpha(times).cpu(), other.process.alpha(times.to(other.device)).cpu(), atol=1e-5
    ):
        raise ValueError(f"{who}: its policy has another noise schedule than the sampled one: choose one of its kind.")
    other.calls = policy.calls
