"""Methods that follow the gradient of a differentiable reward."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from parts import Darkness, T, prompts, trainer

from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.algorithms.reward_gradient.draft import DRaFT, DRaFTLV
from lit_align.algorithms.reward_gradient.refl import ReFL
from lit_align.algorithms.reward_gradient.srpo import LEVELS, SRPO
from lit_align.diffusion.sampler import Sampler, last_k
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.jpeg import JPEGCompressibility

METHODS = [DRaFT, DRaFTLV, AlignProp, ReFL, SRPO]
FAMILIES = [StableDiffusion, StableDiffusionXL, StableDiffusion3]
BATCH = {"prompt": ["a red circle", "b"], "index": [0, 1], "seed": [0, 1]}
name = lambda x: getattr(x, "__name__", None) or type(x).__name__


def make(cls, policy=None, steps=4, eta=0.0, **kwargs):
    """A method ready for `step`, its LoRA away from where it starts."""
    torch.manual_seed(1)
    policy = policy or StableDiffusion("tiny", LoRA(rank=2))
    defaults = {"min_step": 1} if cls is ReFL else {}
    rollout = Sampler(steps, 2.0, DDIM(eta))
    method = cls(policy=policy, reward=Darkness(), rollout=rollout, **(defaults | kwargs))
    generator = torch.Generator().manual_seed(7)
    for p in trained(method):
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    method.trainer, method.log = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), lambda *a, **k: None
    method.trainer.training = True
    return method


def trained(method):
    return [p for p in method.policy.parameters() if p.requires_grad]


def gradient(method, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(method))])


def seeded(method, batch=BATCH):
    """Loss and gradient of one step, from a fixed seed."""
    torch.manual_seed(3)
    loss = method.batch_loss(batch)
    return loss.item(), gradient(method, loss)


class ByHand:
    """Sampling written again on diffusers' own scheduler, with guidance 2 by two calls of the network."""

    def __init__(self, method, texts=BATCH["prompt"]):
        self.policy = policy = method.policy
        self.scheduler, self.flow = policy.pipe.scheduler, isinstance(policy, StableDiffusion3)
        self.scheduler.set_timesteps(method.rollout.steps)
        self.cond, self.null = policy.condition(texts), policy.condition([""] * len(texts))

    def network(self, x, t, cond):
        if self.flow:
            return self.policy.denoiser(x, cond["text"], cond["pooled"], t.expand(len(x))).sample
        return self.policy.denoiser(x, t, cond["text"]).sample

    def guided(self, x, t):
        null = self.network(x, t, self.null)
        return null + 2 * (self.network(x, t, self.cond) - null)

    def image(self, x):
        vae = self.policy.pipe.vae
        z = x / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        return (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)

    def sample(self, x, keep, cut_x):
        """Where `keep` is False the prediction is constant, and with `cut_x` also the x_t it is made from."""
        for i, t in enumerate(self.scheduler.timesteps):
            x = x if keep[i] or not cut_x else x.detach()
            prediction = self.guided(x, t)
            x = self.scheduler.step(prediction if keep[i] else prediction.detach(), t, x).prev_sample
        return x


def noise(method):
    torch.manual_seed(3)
    return torch.randn(2, *method.policy.latent_shape)


def darkness(image):
    return 1 - image.mean((1, 2, 3))


def close(got, want):
    assert want.norm() > 0
    assert (got - want).norm() < 2e-3 * want.norm()


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=name)
def test_drafts_gradient_is_back_propagation_through_a_loop_by_hand(family, K):
    method = make(DRaFT, family("tiny", LoRA(rank=2)), K=K)
    loss, got = seeded(method)
    hand = ByHand(method)
    keep = [i >= 4 - K for i in range(4)]
    want = -darkness(hand.image(hand.sample(noise(method), keep, cut_x=True))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


def test_draft_without_K_is_draft_k_at_k_equal_t_and_differs_from_draft_1():
    every, one = seeded(make(DRaFT))[1], seeded(make(DRaFT, K=1))[1]
    assert torch.equal(every, seeded(make(DRaFT, K=4))[1])
    assert not torch.allclose(every, one, rtol=0.01)


def test_draft_1_depends_on_what_came_before_only_through_x():
    """Its gradient is that of the last step alone, from the x it started at."""
    method = make(DRaFT, K=1)
    _, got = seeded(method)
    state = method.rollout(method.policy, BATCH["prompt"], x=noise(method), record=True)
    x_1 = state.trajectory.x_t[:, -1]
    t, s = (method.rollout.timesteps(method.policy)[k].expand(2) for k in (-2, -1))
    gaussian, _, _ = method.rollout.gaussian(method.policy, x_1, t, s, method.policy.condition(BATCH["prompt"]))
    close(got, gradient(method, -darkness(method.policy.decode(gaussian.mean)).mean()))


@pytest.mark.parametrize("keep", [[1, 0, 1, 0], [0, 1, 0, 1]], ids=str)
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=name)
def test_alignprops_left_out_steps_still_pass_gradient_along_x(family, keep):
    method = make(AlignProp, family("tiny", LoRA(rank=2)))
    method.grad_steps = lambda steps: T(keep).bool()
    loss, got = seeded(method)
    hand = ByHand(method)
    want = 0.01 * (10 - darkness(hand.image(hand.sample(noise(method), keep, cut_x=False)))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    close(got, gradient(method, want))


def test_alignprop_keeps_step_i_with_probability_i_plus_1_over_t_plus_1():
    method, n, steps = make(AlignProp), 20_000, 50
    torch.manual_seed(0)
    keep = torch.stack([method.grad_steps(steps) for _ in range(n)])
    p = (torch.arange(steps) + 1) / (steps + 1)
    z = (keep.float().mean(0) - p) / (p * (1 - p) / n).sqrt()
    assert (z.abs() < 3).float().mean() >= 0.94 and z.abs().max() < 4.5
    total = keep.sum(1).float()
    assert abs(total.mean() - 25) < 3 * total.std() / n**0.5
    assert (keep[:, :-1] & ~keep[:, 1:]).any()  # with gaps


def test_alignprop_per_trajectory_keeps_the_last_k():
    method = make(AlignProp, truncation="trajectory")
    torch.manual_seed(0)
    keep = torch.stack([method.grad_steps(50) for _ in range(20_000)])
    assert not (keep[:, :-1] & ~keep[:, 1:]).any() and keep[:, -1].all()
    K = keep.sum(1)
    counts = torch.bincount(K, minlength=51)[1:].float()
    assert K.min() == 1 and K.max() == 50
    assert ((counts - 400).abs() / (400 * 0.98) ** 0.5).max() < 4.5


def test_alignprops_losses_are_those_of_the_paper():
    r = T([5.0, 6.5])
    torch.testing.assert_close(make(AlignProp).loss(r), T([0.05, 0.035]))
    torch.testing.assert_close(make(AlignProp, target=1.0).loss(T([0.28])), T([0.0072]))


def test_a_draw_that_kept_nothing_trains_nothing(tmp_path):
    method = AlignProp(policy=StableDiffusion("tiny", LoRA(rank=2)), reward=Darkness(), rollout=Sampler(2, 1.0), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    method.grad_steps = lambda steps: torch.zeros(steps, dtype=torch.bool)
    before = [p.detach().clone() for p in trained(method)]
    trainer(tmp_path).fit(method, prompts())
    assert all(torch.equal(a, b) for a, b in zip(before, trained(method)))


class Calls:
    """Counts the policy's network calls, and those with gradient."""

    def __init__(self, policy):
        self.all = self.graded = 0
        self.predict, policy.predict = policy.predict, self

    def __call__(self, *args):
        self.all += 1
        self.graded += torch.is_grad_enabled()
        return self.predict(*args)


def test_refls_gradient_is_that_of_one_call_on_an_estimate_of_x_0():
    method = make(ReFL, steps=6, min_step=3, eta=1.0)
    calls = Calls(method.policy)
    loss, got = seeded(method)
    hand = ByHand(method)
    torch.manual_seed(3)
    i = torch.randint(3, 6, ()).item()
    assert calls.all == i + 2 and calls.graded == 2  # forward, and again in backward
    x = torch.randn(2, *method.policy.latent_shape)
    times = hand.scheduler.timesteps
    with torch.no_grad():
        for t in times[:i]:
            x = hand.scheduler.step(hand.guided(x, t), t, x, eta=1.0, variance_noise=torch.randn_like(x)).prev_sample
    x_0 = hand.scheduler.step(hand.guided(x, times[i]), times[i], x).pred_original_sample
    want = 1e-3 * F.relu(2 - darkness(hand.image(x_0))).mean()
    assert loss == pytest.approx(want.item(), abs=1e-7)
    close(got, gradient(method, want))


def test_refl_draws_every_late_step_and_no_other():
    method, seen = make(ReFL, steps=3, min_step=1), []

    class Seen(Sampler):
        def __call__(self, *args, hook, grad):
            seen.append((hook.last, grad.tolist()))
            return super().__call__(*args, hooks=(hook,), grad=grad)

    method.rollout = Seen(3, 1.0)
    for _ in range(16):
        method.batch_loss(BATCH)
    assert {last for last, _ in seen} == {1, 2}
    assert all(grad == [k == last for k in range(3)] for last, grad in seen)


def test_refl_teaches_nothing_above_its_threshold():
    loss, got = seeded(make(ReFL, threshold=-1.0))
    assert loss == 0 and not got.any()


def test_refls_anchor_is_the_denoising_loss_on_the_batchs_images():
    method = make(ReFL, threshold=-1.0, pretrain_weight=0.5)
    assert method.feedback == ("prompt", "image")
    x_0 = torch.randn(2, *method.policy.latent_shape)
    method.generate = lambda texts: torch.zeros(2, *method.policy.latent_shape)
    loss, got = seeded(method, BATCH | {"image_latents": x_0})
    torch.manual_seed(3)
    t, eps = torch.randint(1000, (2,)), torch.randn_like(x_0)
    hand = ByHand(method)
    want = 0.5 * F.mse_loss(hand.network(hand.scheduler.add_noise(x_0, eps, t), t, hand.cond), eps)
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=name)
def test_draft_lv_averages_draft_1_and_n_estimates_from_its_sample(family, n):
    method = make(DRaFTLV, family("tiny", LoRA(rank=2)), n=n)
    loss, got = seeded(method)
    again = seeded(method)
    assert loss == again[0] and torch.equal(got, again[1])  # deterministic, given the noise
    hand, x = ByHand(method), noise(method)
    eps = torch.randn(2 * n, *x.shape[1:]).chunk(n)
    x_0 = hand.sample(x, [False] * 3 + [True], cut_x=True)
    t = hand.scheduler.timesteps[-1]
    a, s = (1 - t / 1000, t / 1000) if hand.flow else (hand.scheduler.alphas_cumprod[t].sqrt(), (1 - hand.scheduler.alphas_cumprod[t]).sqrt())
    rewards = [darkness(hand.image(x_0))]
    for e in eps:
        x_1 = a * x_0.detach() + s * e
        out = hand.guided(x_1, t)
        rewards.append(darkness(hand.image(x_1 - s * out if hand.flow else (x_1 - s * out) / a)))
    want = -torch.cat(rewards).mean()
    assert loss == pytest.approx(want.item(), abs=1e-5)
    close(got, gradient(method, want))


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=name)
def test_srpo_recovers_x_0_where_the_step_is_exact(family):
    method = make(SRPO, family("tiny", LoRA(rank=2)))
    policy, times = method.policy, method.times()
    x_0, eps = torch.randn(2, 2, *policy.latent_shape)
    policy.denoise = lambda x, t, cond, scale: policy.process.target(x_0, eps, t)
    for t, s in ((0, 100), (300, 200), (998, 899)):
        torch.testing.assert_close(method.recover(x_0, eps, times[t], times[s], {}), x_0, atol=1e-4, rtol=0)
    policy.denoise = lambda x, t, cond, scale: policy.process.target(x_0, eps, t) + 0.1
    wrong = method.recover(x_0, eps, times[300], times[400], {})
    (a_t, s_t), (a_s, s_s) = ((policy.process.alpha(times[k]), policy.process.sigma(times[k])) for k in (300, 400))
    shift = 0.1 * (s_s - s_t) / a_s if family is StableDiffusion3 else 0.1 * (s_s / a_s - s_t / a_t)  # Euler; DDIM
    torch.testing.assert_close(wrong, x_0 + shift, atol=1e-4, rtol=0)


class Contrast(Darkness):
    """Darkness for a prompt with a good word, its half with another."""

    def forward(self, images, texts):
        return super().forward(images, texts) * T([1.0 if p.startswith("Real. ") else 0.5 for p in texts])


def test_srpos_reward_is_relative_and_its_two_steps_meet():
    method = make(SRPO, good_words=("Real",), bad_words=("Oil",))
    method.reward = Contrast()
    image, (good, bad) = torch.full((2, 3, 8, 8), 0.2), method.controlled(BATCH["prompt"])
    assert good == ["Real. a red circle", "Real. b"] and bad == ["Oil. a red circle", "Oil. b"]
    assert method.relative(image, good, bad, 0.1).tolist() == pytest.approx([1.1 * 0.8 - 0.4] * 2)
    assert method.relative(image, bad, good, 0.3).tolist() == pytest.approx([1.3 * 0.4 - 0.8] * 2)
    seen, ends = [], []
    method.times, method.policy.decode = lambda: torch.arange(LEVELS), lambda z: image
    method.rollout = lambda policy, cond, x: SimpleNamespace(x=x)
    method.recover = lambda x_0, eps, t, s, cond: seen.append((int(t), int(s))) or x_0
    method.agreed = lambda value: ends.append(value) or value
    k_plus, k_minus = torch.linspace(0.1, 0.25, LEVELS), torch.linspace(0.3, 0.01, LEVELS)  # from data to noise
    for _ in range(50):
        loss = method.batch_loss(BATCH)
        (a, end), (b, same) = seen[-2:]
        hop = min(100, end, LEVELS - 1 - end)
        assert end == same == ends[-1] and end - a == b - end == hop and hop > 0
        r_plus = (1 + k_plus[LEVELS - 1 - end]) * 0.8 - 0.4
        r_minus = (1 + k_minus[LEVELS - 1 - b]) * 0.4 - 0.8
        assert loss.item() == pytest.approx((F.relu(0.7 - r_plus) + F.relu(0.7 - r_minus)).item() / 2, abs=1e-5)


def test_srpo_starts_from_the_noise_it_injects_and_calls_with_gradient_twice():
    method = make(SRPO)
    calls, seen, recover = Calls(method.policy), [], method.recover
    method.recover = lambda x_0, eps, *rest: seen.append((x_0, eps)) or recover(x_0, eps, *rest)
    seeded(method)
    assert calls.all == 4 + 2 and calls.graded == 2
    want = method.rollout(method.policy, BATCH["prompt"], x=seen[0][1]).x
    torch.testing.assert_close(seen[0][0], want)
    assert not seen[0][0].requires_grad


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=name)
@pytest.mark.parametrize("family", FAMILIES, ids=name)
@pytest.mark.parametrize("cls", METHODS, ids=name)
def test_a_step_moves_what_is_trained_and_nothing_else(tmp_path, cls, family, adapter):
    policy = family("tiny", adapter)
    more = {"min_step": 1} if cls is ReFL else {}
    method = cls(policy=policy, reward=Darkness(), rollout=Sampler(2, 2.0), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **more)
    if cls is AlignProp:
        method.grad_steps = lambda steps: last_k(steps, 1)
    parts = [policy.denoiser, policy.pipe.vae, *policy._encoders()]
    everything = {id(p): (p, p.detach().clone(), p.requires_grad) for part in parts for p in part.parameters()}
    t = trainer(tmp_path, max_steps=1)
    t.fit(method, prompts())
    assert t.global_step == 1 and "train/reward" in t.callback_metrics
    moved = {flag: [not torch.equal(p, old) for p, old, f in everything.values() if f == flag] for flag in (True, False)}
    assert any(moved[True]) and not any(moved[False])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", METHODS, ids=name)
def test_the_reward_rises(tmp_path, cls, seed):
    L.seed_everything(seed, verbose=False)
    policy = StableDiffusion("tiny", LoRA(rank=4))
    more = {"min_step": 1} if cls is ReFL else {}
    method = cls(policy=policy, reward=Darkness(), rollout=Sampler(3, 1.0), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **more)

    @torch.no_grad()
    def evaluate():
        return darkness(policy.decode(Sampler(3, 1.0)(policy, ["p0", "p1"] * 12, seeds=list(range(100, 124))).x))

    before = evaluate()
    trainer(tmp_path).fit(method, prompts(2, 15))
    gain = evaluate() - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_the_trainer_clips_and_accumulates(tmp_path):
    L.seed_everything(0, verbose=False)
    method = DRaFT(policy=StableDiffusion("tiny", LoRA(rank=2)), reward=Darkness(), rollout=Sampler(2, 2.0), K=1, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = [p.detach().clone() for p in trained(method)]
    t = trainer(tmp_path, accumulate_grad_batches=3, gradient_clip_val=1e-7)
    t.fit(method, prompts(2, 3))
    assert t.global_step == 1
    step = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, trained(method))])
    assert 0.5e-7 < step.norm().item() < 1.01e-7  # clip_grad_norm_ adds 1e-6 to the gradient's norm, here about 1e-5


def test_memory_is_that_of_one_step():
    """Between forward and backward nothing of a kept step's network is held: each is called again."""

    def held(K):
        method, size = make(DRaFT, steps=8, K=K), 0

        def pack(x):
            nonlocal size
            size += x.numel()
            return x

        calls = Calls(method.policy)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = method.batch_loss(BATCH)
        gradient(method, loss)
        assert calls.all == 8 + K and calls.graded == 2 * K
        return size, method

    (one, method), (eight, _) = held(1), held(8)
    network, x = 0, torch.randn(4, *method.policy.latent_shape)

    def pack(y):
        nonlocal network
        network += y.numel()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        method.policy.denoise(x, T([500] * 4), method.policy.condition(BATCH["prompt"] * 2))
    assert (eight - one) / 7 < network / 10


@pytest.mark.parametrize("cls", METHODS, ids=name)
def test_a_reward_without_gradient_is_refused(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs the reward's gradient and compressibility has none"):
        cls(policy=StableDiffusion("tiny", LoRA(rank=2)), reward=JPEGCompressibility())


def test_steps_that_the_rollout_lacks_are_refused():
    with pytest.raises(ValueError, match="K is 5; .* 1 to 4 steps"):
        make(DRaFT, K=5)
    with pytest.raises(ValueError, match="first is 4; .* steps 0 to 3"):
        make(ReFL, min_step=4)


@pytest.mark.parametrize("cls", METHODS, ids=name)
def test_a_reward_that_is_not_finite_names_its_prompt(cls):
    method = make(cls)
    method.reward.forward = lambda images, texts: images.mean((1, 2, 3)) * T([float("nan") if t.endswith("circle") else 1.0 for t in texts])
    with pytest.raises(FloatingPointError, match="a red circle"):
        method.batch_loss(BATCH)
