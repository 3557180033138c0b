"""InstructVideo against its partial chain written out by hand."""

import pytest
import torch
from gradients import close, gradient
from parts import Level, prompts, tiny, trainer
from preferences import attached

from lit_align.algorithms.reward_gradient.instruct_video import InstructVideo
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.model_scope import ModelScopeT2V
from lit_align.policies.stable_diffusion import StableDiffusion

BATCH = {"prompt": ["a red circle", "b"], "index": [0, 1]}


def make(policy, **kwargs):
    return attached(InstructVideo(policy=policy, reward=Level(), rollout=Sampler(5, 3.0), **kwargs))


def test_the_last_of_the_partial_chains_steps_has_gradient():
    policy = tiny(StableDiffusion)
    for p in policy.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    method = make(policy, share=0.6, offset=0.0)
    assert method.first == 2
    x_0 = torch.randn(2, *policy.latent_shape)
    torch.manual_seed(3)
    loss = method.batch_loss(BATCH | {"image_latents": x_0})
    got = gradient(method, loss)
    cond, grid = method.policy.condition(BATCH["prompt"]), method.rollout.timesteps(policy)
    torch.manual_seed(3)
    eps = torch.randn_like(x_0)
    x = policy.process.add_noise(x_0, eps, grid[2].expand(2))
    for i in (2, 3, 4):
        t, s = grid[i].expand(2), grid[i + 1].expand(2)
        with torch.set_grad_enabled(i == 4):
            pred = policy.denoise(x, t, cond, 3.0)
        a, sigma = policy.process.coefficients(s, x)
        x = a * policy.process.to_x0(pred, x, t) + sigma * policy.process.to_eps(pred, x, t)
    want = -policy.decode(x).flatten(1).mean(1).mean()
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


def test_the_noise_of_a_frame_is_shared_by_its_pixels():
    method = make(tiny(StableDiffusion), offset=10.0)
    torch.manual_seed(0)
    eps = method.noise(torch.zeros(4, 4, 3, 32, 32))
    assert eps.mean((3, 4)).std() == pytest.approx(10, rel=0.3) and eps.var((3, 4)).mean() == pytest.approx(1, rel=0.05)


def test_two_steps_on_clips(tmp_path):
    policy = ModelScopeT2V("tiny", LoRA(rank=2), resolution=16, num_frames=2)
    method = InstructVideo(policy=policy, reward=Level(), rollout=Sampler(4, 3.0), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    before = [p.detach().clone() for p in policy.parameters() if p.requires_grad]
    t = trainer(tmp_path)
    t.fit(method, prompts(2, batches=2, image=torch.rand(2, *policy.image_shape())))
    after = [p for p in policy.parameters() if p.requires_grad]
    assert t.global_step == 2 and any(not torch.equal(a, b) for a, b in zip(before, after))


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"share is 0.0: give a part of the rollout in \(0, 1\]"):
        make(tiny(StableDiffusion), share=0.0)
    assert make(tiny(StableDiffusion), share=1.0).first == 0
