from types import SimpleNamespace

import lightning as L
import pytest
import torch
from parts import Darkness, trainer

from lit_align.algorithms.parts.advantages import Group, LeaveOneOut, PerPrompt, local_advantages
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE, Gaussian
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def loader(n=2, rollouts=1):
    batch = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "seed": list(range(n))}
    return torch.utils.data.DataLoader([batch] * rollouts, batch_size=None)


def ddpo(policy=None, cls=DDPO, **kwargs):
    policy = policy or StableDiffusion("tiny", LoRA(rank=2))
    rule = FlowSDE() if isinstance(policy, StableDiffusion3) else DDIM(1.0)
    defaults = {"rollout": Sampler(3, 2.0, rule), "samples_per_prompt": 2, "minibatch": 4, "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3)}
    return cls(policy=policy, reward=Darkness(), **(defaults | kwargs))


def test_per_prompt_statistics():
    """Buffer 4, min_count 2: a prompt seen once takes the batch's mean 3 and std 1.870829; memory lives across epochs."""
    a, b, c = 0, 1, 2
    tracker = PerPrompt(buffer_size=4, min_count=2)
    first = tracker(torch.tensor([a, b, a, c]), torch.tensor([1.0, 2.0, 3.0, 6.0]))
    torch.testing.assert_close(first, torch.tensor([-0.999999, -0.534522, 0.999999, 1.603567]), atol=1e-5, rtol=0)
    again = PerPrompt(buffer_size=4, min_count=2)
    again.load_state_dict(tracker.state_dict())
    for t in (tracker, again):
        second = t(torch.tensor([a, a, b, b]), torch.tensor([5.0, 7.0, 2.0, 4.0]))
        torch.testing.assert_close(second, torch.tensor([0.447213, 1.341640, -0.707106, 1.414212]), atol=1e-5, rtol=0)


def test_group_advantages():
    prompts = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    reward = torch.tensor([0.0, 1, 1, 0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 0])
    got = Group(global_std=True)(prompts, reward)
    want = torch.tensor([-1.250774, 1.250774, 1.250774, -1.250774, 0, 0, 0, 0, 0.625387, 0.625387, 0.625387, -1.876160])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    own = Group(global_std=False)(prompts, reward)
    assert own[:4].tolist() == pytest.approx([-0.9998, 0.9998, 0.9998, -0.9998], abs=1e-4) and not own[4:8].any()
    assert own.view(3, 4).sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("rank,want", [(0, [-3.0, -3.5]), (1, [3.0, 3.5])])
def test_a_rank_gets_the_advantages_of_its_own_samples_clipped(rank, want):
    """Rewards 0 and 1 on one rank, 3 and 5 on the other: each prompt's other sample lies there."""
    rewards = torch.tensor([[0.0, 1.0], [3.0, 5.0]])
    everyone = lambda x: rewards if x.is_floating_point() else torch.stack([x, x])
    method = SimpleNamespace(all_gather=everyone, advantage=LeaveOneOut(), max_advantage=3.5, global_rank=rank, trainer=SimpleNamespace(world_size=2))
    assert local_advantages(method, ["a", "b"], rewards[rank]).tolist() == want


def step(log_ratio, advantage):
    n = len(log_ratio)
    zero = torch.zeros(n)
    return StepBatch(Gaussian(zero, zero), torch.tensor(log_ratio, requires_grad=True), zero, torch.tensor(advantage), zero, zero, zero, zero, {})


@pytest.mark.parametrize("ratio,advantage,expected,slope", [
    (1.0, 2.0, -2.0, -2.0), (1.2, 1.0, -1.1, 0.0), (0.8, 1.0, -0.8, -0.8), (1.2, -1.0, 1.2, 1.2), (0.8, -1.0, 0.9, 0.0),
])  # fmt: skip
def test_clipping_binds_on_the_favourable_side_alone(ratio, advantage, expected, slope):
    method = ddpo(clip_range=0.1)
    method.log_mean = lambda *args: None
    s = step([torch.tensor(ratio).log().item()], [advantage])
    loss = method.loss(s)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5) and s.log_prob.grad.item() == pytest.approx(slope, abs=1e-5)


def test_a_step_is_seen_again_with_its_own_advantage_and_the_law_it_was_drawn_from():
    method = ddpo()
    method.log_mean = lambda *args: None
    trajectory, _ = method.draw_trajectories({"prompt": ["a", "b"], "columns": {}})
    for p in method.parameters():
        p.data += 0.05 * torch.randn_like(p) if p.requires_grad else 0
    rows, steps = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1])
    seen = method.evaluate(trajectory, torch.arange(6.0).view(2, 3), rows, steps)
    assert seen.advantage.tolist() == [5.0, 0.0, 4.0]
    assert torch.equal(seen.old_mean, trajectory.mean[rows, steps]) and torch.equal(seen.old_log_prob, trajectory.log_prob[rows, steps])
    assert not torch.allclose(seen.gaussian.mean, seen.old_mean, atol=1e-5)


def test_what_is_logged_is_the_mean_over_the_batch(tmp_path):
    """Minibatches of 4, 4 and 4 denoising steps."""
    method, seen = ddpo(), []
    method.loss = lambda step: seen.append(torch.full_like(step.log_prob, len(seen))) or seen[-1] + 0 * step.log_prob
    t = trainer(tmp_path)
    t.fit(method, loader())
    assert len(seen) == 3 and t.callback_metrics["train/loss"] == pytest.approx(1.0)


def test_a_rollout_is_passed_over_inner_epochs_times(tmp_path):
    t = trainer(tmp_path)
    t.fit(ddpo(updates=2, inner_epochs=3), loader())
    assert t.global_step == 6


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_a_rollout_and_its_updates_move_the_adapter_alone(tmp_path, family):
    method = ddpo(family("tiny", LoRA(rank=2)), updates=2)
    before = {k: v.clone() for k, v in method.policy.denoiser.state_dict().items()}
    ratios = []
    evaluate = method.evaluate
    method.evaluate = lambda *args: (lambda s: (ratios.append(s.ratio.detach()), s)[1])(evaluate(*args))
    t = trainer(tmp_path)
    t.fit(method, loader())
    after = method.policy.denoiser.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all("lora_" in k for k in moved)
    assert t.global_step == 2  # updates
    assert all((r == 1).all() for r in ratios[: len(ratios) // 2])  # exactly, before the first update
    assert any((r != 1).any() for r in ratios[len(ratios) // 2 :])


def test_one_update_is_the_policy_gradient_of_all_steps(tmp_path):
    """DDPO-SF: the gradient is that of -mean over samples and steps of A log p, whatever the minibatch."""
    grads = []
    for minibatch in (2, 100):
        method = ddpo(minibatch=minibatch, max_grad_norm=1e9, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        seen = {}
        learn = method.optimizer_steps
        method.optimizer_steps = lambda c: seen.update(t=c[0], a=c[1]) or learn(c)
        trainer(tmp_path).fit(method, loader())
        grads.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.requires_grad]))
        loss = 0.0
        for i in range(seen["t"].t.shape[1]):
            m = seen["t"].minibatch(torch.arange(4), torch.full((4,), i))
            g, _, _ = method.rollout.gaussian(method.policy, m["x_t"], m["t"], m["s"], m["cond"])
            loss = loss - (seen["a"] * g.log_prob(m["x_s"])).mean() / seen["t"].t.shape[1]
        want = torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad])
        torch.testing.assert_close(grads[-1], torch.cat([w.flatten() for w in want]), rtol=1e-3, atol=1e-6 + 1e-3 * grads[-1].abs().max().item())


def test_the_gradient_is_that_of_the_expected_reward():
    """On a denoiser of one weight and latents of one number: against a central difference of the mean reward of samples
    from the same noise."""
    method, n = ddpo(rollout=Sampler(4, 1.0, DDIM(1.0)), minibatch=10**9, max_grad_norm=1e9, clip_range=1e9), 100_000
    policy, weight = method.policy, torch.tensor(0.3, requires_grad=True)
    policy.denoise = lambda x, t, cond, guidance_scale=1.0: weight * x
    method.optimizers = lambda: torch.optim.SGD([weight], lr=0.0)
    method.manual_backward, method.log_mean = (lambda loss: loss.backward()), (lambda *args: None)
    cond, x = {"text": torch.zeros(n, 1)}, torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))

    def rollout(value, record=False):
        torch.manual_seed(3)
        weight.data.fill_(value)
        return method.rollout(policy, cond=cond, x=x, record=record)

    reward = lambda state: -(state.x.flatten() - 1).square()
    h = 1e-2
    want = (reward(rollout(0.3 + h)).mean() - reward(rollout(0.3 - h)).mean()) / (2 * h)
    state = rollout(0.3, record=True)
    r = reward(state)
    steps = method.trained_steps(state.trajectory)
    method.update(state.trajectory, (r - r.mean())[:, None].expand(n, 4), torch.arange(n)[:, None], steps)
    got = -weight.grad * len(steps)  # the loss is a mean over steps
    assert abs(want) > 0.1 and got.item() == pytest.approx(want.item(), rel=0.05)


@pytest.mark.slow
def test_ddpo_raises_its_reward(tmp_path):
    L.seed_everything(0)
    sampler = Sampler(4, 1.0, DDIM(1.0))
    method = ddpo(StableDiffusion("tiny"), samples_per_prompt=16, minibatch=128, advantage=Group(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), clip_range=0.1, rollout=sampler)

    def reward():
        with torch.no_grad():  # the same noise every time
            return Darkness()(method.policy.decode(sampler(method.policy, ["p0", "p1"] * 32, seeds=range(64)).x), None)

    before = reward()
    trainer(tmp_path).fit(method, loader(2, 24))
    gain = reward() - before
    assert gain.mean() > 3 * gain.std() / 8  # three standard errors


@pytest.mark.parametrize("cls", [DDPO, TDPOR], ids=lambda c: c.__name__)
def test_a_loss_that_is_not_finite_is_named_before_it_moves_a_weight(tmp_path, cls):
    method = ddpo(cls=cls)
    method.loss = lambda step: step.log_prob * float("nan")
    before = [p.detach().clone() for p in method.parameters()]
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0 on .'p"):
        trainer(tmp_path).fit(method, loader())
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


def test_a_rollout_without_noise_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the rollout has none: give it a transition with noise"):
        trainer(tmp_path).fit(ddpo(rollout=Sampler(3, 2.0)), loader())


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
def test_nothing_sees_more_than_a_minibatch_at_once(tmp_path, family):
    """And the parts of a rollout are put together in order."""
    method, rows, seen = ddpo(family("tiny", LoRA(rank=2)), samples_per_prompt=4, minibatch=3), [], {}
    policy, learn = method.policy, method.optimizer_steps
    predict, decode = policy.predict, policy.decode
    policy.predict = lambda x, t, cond: rows.append(len(x) // 2) or predict(x, t, cond)  # guided: twice
    policy.decode = lambda x: rows.append(len(x)) or decode(x)
    method.reward.forward = lambda images, prompts: seen.setdefault("n", []).append(len(images)) or seen.setdefault("prompts", []).extend(prompts) or torch.rand(len(images))
    method.optimizer_steps = lambda c: seen.update(tr=c[0]) or learn(c)
    trainer(tmp_path).fit(method, loader())
    assert max(rows) == 3 and seen["n"] == [3, 3, 2]
    assert seen["tr"].prompts == seen["prompts"] == ["p0"] * 4 + ["p1"] * 4 and seen["tr"].x_t.shape[:2] == (8, 3)
    text = policy.condition(seen["prompts"])["text"]
    torch.testing.assert_close(seen["tr"].cond["text"], text)


def test_a_nan_reward_is_named(tmp_path):
    class Broken(Darkness):
        def forward(self, images, prompts):
            return super().forward(images, prompts) * float("nan")

    method = ddpo()
    method.reward = Broken()
    with pytest.raises(FloatingPointError, match="the reward is not finite at step 0 for 'p0'"):
        trainer(tmp_path).fit(method, loader())
