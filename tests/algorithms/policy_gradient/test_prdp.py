from unittest import mock

import pytest
import torch
from online import policy_gradient
from parts import move, prompts, sgd, tiny, trained, trainer

from lit_align.algorithms.policy_gradient.prdp import PRDP
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Full


@pytest.mark.parametrize("clip_range", [1e9, None, 1e-6], ids=["inside", "some clamped", "clamped"])
def test_prdps_two_passes_are_the_gradient_of_the_one_graph(tmp_path, clip_range):
    method = policy_gradient(PRDP, tiny(adapter=Full()), rollout=Sampler(4, 2.0, DDIM(1.0)), beta=3.0, clip_range=clip_range or 1.0, minibatch=2, optimizer=sgd(0.0), max_grad_norm=1e9)
    kept, optimizer_steps = {}, method.optimizer_steps

    def moved(collected):
        trajectory, reward = collected
        move(method.policy, 0.01)  # away from old and reference
        if clip_range is None:  # the larger square is the clamped one, with some of the steps inside
            reward = reward.new_tensor([1e3, -1e3, -1e3, 1e3])
            rows, i = (c.flatten() for c in torch.meshgrid(torch.arange(4), method.trained_steps(trajectory), indexing="ij"))
            with torch.no_grad():
                step = method.evaluate(trajectory, torch.zeros(4, 4), rows, i)
            method.clip_range = (step.log_prob - step.old_log_prob).abs().median().item()
        kept.update(trajectory=trajectory, reward=reward)
        yield from optimizer_steps((trajectory, reward))
        kept["grad"] = [p.grad.clone() for p in trained(method.policy)]

    with mock.patch.object(method, "optimizer_steps", moved):
        trainer(tmp_path).fit(method, prompts(2))
    tr, r = kept["trajectory"], kept["reward"]
    steps = method.trained_steps(tr)
    rows, i = (c.flatten() for c in torch.meshgrid(torch.arange(4), steps, indexing="ij"))
    m = tr.minibatch(rows, i)
    gaussian, _, _ = method.rollout.gaussian(method.policy, m["x_t"], m["t"], m["s"], m["cond"])
    log_prob = gaussian.log_prob(m["x_s"]).view(4, -1)
    with torch.no_grad(), method.policy.reference():
        reference = method.rollout.gaussian(method.policy, m["x_t"], m["t"], m["s"], m["cond"])[0].log_prob(m["x_s"]).view(4, -1)
    old, clip_range, loss = m["log_prob"].view(4, -1), method.clip_range, 0
    for a, b in ((0, 1), (2, 3)):
        square = lambda lp: (3.0 * ((lp - reference)[a].sum() - (lp - reference)[b].sum()) - (r[a] - r[b])).square()
        loss = loss + torch.maximum(square(log_prob), square(torch.max(torch.min(log_prob, old + clip_range), old - clip_range))) / 2
    want = torch.autograd.grad(loss, trained(method.policy))
    scale = max(g.abs().max() for g in want)
    for a, b in zip(kept["grad"], want):
        torch.testing.assert_close(a / scale, b / scale, atol=1e-4, rtol=1e-3)
    assert scale > 0
