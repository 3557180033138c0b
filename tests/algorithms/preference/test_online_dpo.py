"""Online DPO: the best against the worst of a prompt's own samples."""

import pytest
import torch
from parts import Darkness
from preferences import at, attached, still

from lit_align.algorithms.preference.online_dpo import OnlineDPO
from lit_align.diffusion.sampler import Sampler


def online(cls, **kwargs):
    """A method ready to collect, its policy away from its reference."""
    return attached(cls(policy=still(scale=0.2), rollout=Sampler(2, 1.0), **kwargs))





def test_the_loss_is_diffusion_dpos(policy):
    method = OnlineDPO(policy=policy, reward=Darkness(), beta=1.0)
    assert method.loss(at(1.0)).item() == pytest.approx(0.31326169, abs=1e-8)


def test_pairs_are_each_prompts_best_and_worst_samples_of_the_policy():
    method = online(OnlineDPO, reward=Darkness(), samples_per_prompt=3, minibatch=4)
    torch.manual_seed(1)
    pairs = method.collect({"prompt": ["a", "b"]})
    torch.manual_seed(1)
    with torch.no_grad():
        x = torch.cat([method.rollout(method.policy, p).x for p in (["a", "a", "a", "b"], ["b", "b"])]).unflatten(0, (2, 3))
        dark = 1 - method.policy.decode(x.flatten(0, 1)).mean((1, 2, 3)).view(2, 3)
    rows = torch.arange(2)
    torch.testing.assert_close(pairs["win_latents"], x[rows, dark.argmax(1)])
    torch.testing.assert_close(pairs["lose_latents"], x[rows, dark.argmin(1)])
    assert pairs["prompt"] == ["a", "b"] and method.logged["train/reward"] == pytest.approx(dark.mean().item(), abs=1e-5)
