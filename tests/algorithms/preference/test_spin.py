"""SPIN-Diffusion: good images against the reference's own."""

import pytest
from preferences import at, attached, still

from lit_align.algorithms.preference.spin import SPINDiffusion
from lit_align.diffusion.sampler import Sampler


def online(cls, **kwargs):
    """A method ready to collect, its policy away from its reference."""
    return attached(cls(policy=still(scale=0.2), rollout=Sampler(2, 1.0), **kwargs))





def test_the_loss_is_diffusion_dpos(policy):
    assert SPINDiffusion(policy=policy, beta=1.0).loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)
