"""Preferences at single denoising steps: SPO, LPO, their rewards and how those are trained."""

import math

import pytest
import torch
import torch.nn.functional as F
from parts import Darkness, T, prompts, rollout, trainer

from lit_align.algorithms.reward_modeling.step_preference import StepPreference
from lit_align.algorithms.trajectory_preference.d3po import D3PO
from lit_align.algorithms.trajectory_preference.pso import OfflinePSO
from lit_align.algorithms.trajectory_preference.spo import SPO, Candidates
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies import tiny
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.step_aware import StepAwarePreference
from lit_align.rewards.step_reward import OneStep, StepReward


class Mean(StepReward):
    """The mean of the noisy latents (or of the estimate), and a record of what was seen."""

    def __init__(self, needs_x0=False, scale=100.0):
        super().__init__()
        self.needs_x0, self.scale, self.seen = needs_x0, scale, []

    def forward(self, policy, x_t, x_0, t, prompts):
        assert len(prompts) == len(x_t)
        self.seen.append((x_t, x_0, t, list(prompts)))
        return self.scale * (x_0 if self.needs_x0 else x_t).mean((1, 2, 3))


def spo(policy, reward=None, **kwargs):
    defaults = {"rollout": rollout(policy, 4), "first": 1, "candidates": 3, "minibatch": 4, "optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
    return SPO(policy=policy, reward=reward or Mean(), **(defaults | kwargs))


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
@pytest.mark.parametrize("needs_x0", [False, True], ids=["latent", "estimate"])
def test_pairs_are_the_best_and_the_worst_candidates_of_one_x_t(needs_x0, family):
    policy, reward = family("tiny"), Mean(needs_x0)
    sampler = rollout(policy, 4)
    hook = Candidates(sampler, reward, k=3, skip_steps=1)
    policy.calls.clear()
    with torch.no_grad():
        state = sampler(policy, ["a", "b"], hooks=(hook,))
    trajectory = hook.pairs(state.cond, ["a", "b"])
    learnt = len(hook.steps)  # a last step without noise teaches nothing
    assert learnt >= 2 and trajectory.x_t.shape[:2] == (4, learnt) and trajectory.prompts == ["a", "a", "b", "b"]
    for i, (x_t, x_0, t, texts) in enumerate(reward.seen):
        assert texts == ["a"] * 3 + ["b"] * 3 and torch.equal(t, trajectory.s[:1, i].expand(6))
        score = (x_0 if needs_x0 else x_t).mean((1, 2, 3)).view(2, 3)
        candidates = x_t.unflatten(0, (2, 3))
        for n in range(2):
            assert torch.equal(trajectory.x_s[2 * n, i], candidates[n, score[n].argmax()])
            assert torch.equal(trajectory.x_s[2 * n + 1, i], candidates[n, score[n].argmin()])
            if i + 1 < learnt:  # sampling goes on from one of the three
                assert any(torch.equal(trajectory.x_t[2 * n, i + 1], c) for c in candidates[n])
        assert torch.equal(trajectory.x_t[::2, i], trajectory.x_t[1::2, i])
    guided = 2 * 2  # two prompts, two branches
    looks = (learnt - (1 if learnt == 3 else 0)) if needs_x0 else 0  # the end needs no estimate
    fresh = 4 - looks  # a step after a look needs no prediction of its own
    assert policy.calls["denoise"] == guided * (fresh + 3 * looks)


def test_a_step_seen_again_has_the_likelihood_it_was_drawn_with():
    policy = StableDiffusion("tiny")
    method = spo(policy, Mean(needs_x0=True))
    method.log_mean, method.all_gather = lambda *args: None, lambda x: x
    trajectory, advantage = method.collect(["a", "b"])
    for i in range(trajectory.t.shape[1]):
        m = trajectory.minibatch(torch.arange(4), torch.full((4,), i))
        with torch.no_grad():
            torch.testing.assert_close(method.gaussian(m).log_prob(m["x_s"]), m["log_prob"], atol=1e-5, rtol=1e-5)
    assert advantage.shape == trajectory.t.shape and torch.equal(advantage[::2], -advantage[1::2])


def test_the_threshold_grows_with_the_steps_noise():
    """tanh(gap / 2) against low + (high - low) (std - min) / (max - min), recomputed from the recorded scores."""
    policy, reward = StableDiffusion("tiny"), Mean(scale=20.0)
    method = spo(policy, reward, threshold=(0.1, 0.9), rollout=Sampler(6, 2.0, DDIM(1.0)), skip_steps=0)
    method.log_mean, method.all_gather = lambda *args: None, lambda x: x
    torch.manual_seed(0)
    _, advantage = method.collect(["a", "b", "c", "d"])
    grid = policy.process.timesteps(6)
    a, s = policy.process.alpha(grid), policy.process.sigma(grid)
    std = s[1:] * (1 - (a[:-1] * s[1:] / (a[1:] * s[:-1])).square()).sqrt()
    std = std[: advantage.shape[1]]
    for i, (x_t, _, _, _) in enumerate(reward.seen):
        score = reward.scale * x_t.mean((1, 2, 3)).view(4, 3)
        two = torch.stack([score.amax(1), score.amin(1)], 1).softmax(1)
        bar = 0.1 + 0.8 * (std[i] - std.min()) / (std.max() - std.min())
        assert torch.equal(advantage[::2, i], (two[:, 0] - two[:, 1] > bar).float())
    assert 0 < advantage[::2].mean() < 1


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3], ids=lambda c: c.__name__)
def test_spo_starts_at_ln_2_and_moves_the_policy_alone(tmp_path, family, adapter):
    method = spo(family("tiny", adapter), threshold=(0.0, 0.0))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    seen, loss = [], method.loss
    method.loss = lambda s: seen.append(loss(s)) or seen[-1]
    trainer(tmp_path).fit(method, prompts())
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], math.log(2)), atol=1e-4, rtol=0)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    now = dict(method.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], now[n])}
    assert moved and moved <= trained


def test_undecided_pairs_teach_nothing(tmp_path):
    method = spo(StableDiffusion("tiny", LoRA(rank=2)), Mean(scale=0.0))
    before = [p.detach().clone() for p in method.parameters()]
    trainer(tmp_path).fit(method, prompts())
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters()))


def test_both_candidates_share_a_forward(tmp_path):
    method = spo(StableDiffusion("tiny", LoRA(rank=2)), minibatch=100)
    sizes, predict = [], method.policy.predict
    method.policy.predict = lambda x, t, cond: sizes.append((len(x), torch.is_grad_enabled())) or predict(x, t, cond)
    trainer(tmp_path).fit(method, prompts(2))
    (learnt,) = [n for n, grad in sizes if grad]
    assert learnt == 2 * 2 * 3  # prompts x guidance x steps with noise


def test_spo_without_noise_says_so():
    method = spo(StableDiffusion("tiny"), rollout=Sampler(4, 1.0))
    with pytest.raises(ValueError, match="transition with eta > 0"):
        method.collect(["a"])


def test_a_score_that_is_not_finite_names_its_prompt(tmp_path):
    reward = Mean()
    reward.forward = lambda policy, x, x_0, t, texts: T([float("nan") if p == "b" else 1.0 for p in texts])
    with pytest.raises(FloatingPointError, match="for 'b'"):
        method = spo(StableDiffusion("tiny"), reward)
        method.trainer = trainer(tmp_path)
        method.collect(["a", "b"])


def test_one_step_scores_the_decoded_estimate():
    policy = StableDiffusion("tiny")
    x = torch.randn(2, *policy.latent_shape)
    got = OneStep(Darkness())(policy, x, 2 * x, T([5, 5]), ["a", "b"])
    torch.testing.assert_close(got, 1 - policy.decode(2 * x).mean((1, 2, 3)))


# SPO's step-aware preference model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel with random weights in a folder, as the hub has it."""
    folder = str(tmp_path_factory.mktemp("clip"))
    for part in tiny.CLIPModel():
        part.save_pretrained(folder)
    return folder


def test_untrained_modulation_leaves_clips_score(clip):
    from transformers import CLIPModel

    model, policy = StepAwarePreference(clip), StableDiffusion("tiny")
    plain, x = CLIPModel.from_pretrained(clip), torch.randn(3, *policy.latent_shape)
    texts = ["a cat", "a dog", "a cat"]
    with torch.no_grad():
        score = model(policy, x, x, T([0, 500, 999]), texts)
        ids = model.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        pixels = F.interpolate(policy.decode(x), (16, 16), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        mean, std = T([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1), T([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        want = plain(input_ids=ids, pixel_values=(pixels - mean) / std).logits_per_image.diagonal()
        torch.testing.assert_close(CLIPScore(clip)(policy.decode(x), texts), want)
    torch.testing.assert_close(score, want)


def test_the_released_format_loads_and_time_matters(clip, tmp_path):
    """Names of the released .bin: CLIP's own under `model.`, adaLN_modulation.1 of every layer and of the tower, t_embedder."""
    model, policy = StepAwarePreference(clip), StableDiffusion("tiny")
    added = {k for k in model.state_dict() if "adaLN" in k or "t_embedder" in k}
    places = ["model.vision_model.adaLN_modulation.1", *(f"model.vision_model.encoder.layers.{i}.adaLN_modulation.1" for i in (0, 1)), "model.t_embedder.mlp.0", "model.t_embedder.mlp.2"]
    assert added == {f"{place}.{part}" for place in places for part in ("weight", "bias")}
    assert model.state_dict()["model.vision_model.encoder.layers.0.adaLN_modulation.1.weight"].shape == (96, 16)
    torch.manual_seed(1)
    state = {k: v + 0.1 * torch.randn_like(v) if k in added else v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "released.bin")
    trained = StepAwarePreference(clip, str(tmp_path / "released.bin"))
    x = torch.randn(1, *policy.latent_shape).expand(2, -1, -1, -1).clone().requires_grad_()
    score = trained(policy, x, x, T([10, 900]), ["a", "a"])
    assert score[0] != score[1]
    score.sum().backward()
    assert x.grad.abs().max() > 0  # differentiable in the latents
    trained.save(str(tmp_path))
    again = StepAwarePreference(clip, str(tmp_path / "step_aware.safetensors"))
    torch.testing.assert_close(again(policy, x, x, T([10, 900]), ["a", "a"]), score)
    torch.save({k: v for k, v in state.items() if "t_embedder" not in k}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="lacks model.t_embedder"):
        StepAwarePreference(clip, str(tmp_path / "other.bin"))


def test_a_reward_file_that_is_nowhere_is_named(clip):
    with pytest.raises(ValueError, match="no/such.bin is neither a file"):
        StepAwarePreference(clip, "no/such.bin")


# LPO's latent reward model


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL], ids=lambda c: c.__name__)
def test_latent_reward_reads_the_encoder_of_the_unet(family):
    """Its features, from a whole UNet with hooks on its own blocks."""
    policy, reward = family("tiny"), LatentReward(family("tiny"), guidance_scale=3.0, projection_dim=8)
    x, t, texts = torch.randn(2, *policy.latent_shape), T([10, 700]), ["a", "b"]
    cond, null, kept = policy.condition(texts), policy.null(2), {}
    unet = policy.denoiser
    for i, block in enumerate(unet.down_blocks):
        last = block.attentions[-1] if hasattr(block, "attentions") else block.resnets[-1]
        last.register_forward_hook(lambda _, __, out, i=i: kept.update({i: out if torch.is_tensor(out) else out[0]}))
    unet.mid_block.register_forward_hook(lambda _, __, out: kept.update(mid=out))
    with torch.no_grad():
        policy.denoise(x, t, null)
        unguided = kept["mid"]
        policy.denoise(x, t, cond)
        stages = [kept[i].mean((2, 3)) for i in range(len(unet.down_blocks))]
        stages.append((unguided + 3 * (kept["mid"] - unguided)).mean((2, 3)))
        image = torch.cat(stages, 1) @ reward.visual_projection.weight.T
        if "pooled" in cond:
            pooled = cond["pooled"]
        else:
            ids = policy.pipe.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
            pooled = policy.pipe.text_encoder(ids).pooler_output
        text = pooled @ reward.text_projection.weight.T
        want = math.exp(2.6592) * (F.normalize(image) * F.normalize(text)).sum(1)
        torch.testing.assert_close(reward(policy, x, None, t, texts), want, atol=1e-4, rtol=1e-4)


def test_latent_reward_needs_a_unet():
    with pytest.raises(ValueError, match="StableDiffusion3 has none"):
        LatentReward(StableDiffusion3("tiny"))


def pair_batch(n=4, same=False, **more):
    torch.manual_seed(3)
    win = torch.rand(n, 3, 16, 16)
    batch = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "win": win, "lose": win if same else torch.rand(n, 3, 16, 16)}
    return batch | more


@pytest.mark.parametrize("kind", ["latent", "step_aware"])
def test_training_moves_the_reward_alone_and_leaves_it_on_disk(kind, clip, tmp_path):
    torch.manual_seed(0)
    reward = LatentReward(StableDiffusion("tiny"), projection_dim=8) if kind == "latent" else StepAwarePreference(clip)
    method = StepPreference(policy=StableDiffusion("tiny"), reward=reward, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    before = {n: p.detach().clone() for n, p in method.policy.named_parameters()}
    mine = {n: p.detach().clone() for n, p in reward.named_parameters()}
    method.policy.process.sample_timesteps = lambda n, device: torch.full((n,), 10)  # little noise: easy
    pairs = pair_batch()
    pairs |= {"win": 0.3 * pairs["win"] + 0.7, "lose": 0.3 * pairs["lose"]}  # bright ones are preferred
    losses, step = [], method.batch_loss
    method.batch_loss = lambda batch: losses.append(step(batch)) or losses[-1]
    torch.manual_seed(0)
    trainer(tmp_path).fit(method, torch.utils.data.DataLoader([pairs] * (60 if kind == "latent" else 2), batch_size=None))
    assert kind == "step_aware" or sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert any(not torch.equal(mine[n], p) for n, p in reward.named_parameters())
    assert all(torch.equal(before[n], p) for n, p in method.policy.named_parameters())
    x, t = torch.randn(2, *method.policy.latent_shape), T([5, 600])
    if kind == "latent":
        again = LatentReward(StableDiffusion("tiny"), projection_dim=8, checkpoint=str(tmp_path / "reward/latent_reward.safetensors"))
    else:
        again = StepAwarePreference(clip, str(tmp_path / "reward/step_aware.safetensors"))
    with torch.no_grad():
        got, want = (r(method.policy, x, x, t, ["a", "b"]) for r in (again, reward))
    torch.testing.assert_close(got, want, atol=2e-2, rtol=1e-2)  # latent rewards are stored in float16


def test_one_image_twice_has_margin_0_and_a_tie_is_half_a_win():
    method = StepPreference(policy=StableDiffusion("tiny"), reward=Mean())
    method._trainer = type("T", (), {"training": True})()
    method.log_mean, method.all_gather = lambda *args: None, lambda x: x
    method.latents = lambda batch, key: batch[key].mean(1, keepdim=True).expand(-1, 4, -1, -1)[..., ::2, ::2]
    assert method.margin(pair_batch(same=True)).abs().max() == 0
    assert method.batch_loss(pair_batch(same=True)).item() == pytest.approx(math.log(2))
    d = (batch := pair_batch()) and None
    torch.manual_seed(0)
    d = method.margin(batch)
    torch.manual_seed(0)
    tie = method.batch_loss(batch | {"label": torch.full((4,), 0.5)})
    torch.testing.assert_close(tie, (-0.5 * F.logsigmoid(d) - 0.5 * F.logsigmoid(-d)).mean())


# PSO offline, D3PO in rounds


def test_offline_pso_learns_at_the_samplers_times_alone(tmp_path):
    policy = StableDiffusion("tiny", LoRA(rank=2))
    sampler = Sampler(3, 1.0, DDIM(1.0))
    method = OfflinePSO(policy=policy, rollout=sampler, updates=2, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    seen, loss = [], method.loss
    method.loss = lambda e: seen.append(e) or loss(e)
    trainer(tmp_path).fit(method, prompts(8, win=torch.rand(8, 3, 16, 16)))
    times = torch.cat([e.t for e in seen])
    assert set(times.tolist()) == set(policy.process.timesteps(3)[:-1].tolist())
    assert seen[0].gap.abs().max() == 0 and seen[-1].gap.abs().max() > 0


def test_d3pos_reference_is_the_last_rounds_policy(tmp_path):
    policy = StableDiffusion("tiny", LoRA(rank=2))
    method = D3PO(policy=policy, reward=Darkness(), rollout=rollout(policy), refresh_every=2, beta=10.0, optimizer=lambda p: torch.optim.SGD(p, lr=10.0))
    starts, evaluate = [], method.evaluate

    def watched(*args):
        step = evaluate(*args)
        starts.append(step.log_ref_ratio.abs().max().item())
        return step

    method.evaluate = watched
    trainer(tmp_path).fit(method, prompts(2, 3))
    per_rollout = len(starts) // 3
    assert starts[0] < 1e-5 < starts[per_rollout] and starts[2 * per_rollout] < 1e-5
