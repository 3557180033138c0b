import pytest
import torch
from hooked import PROMPTS, SEEDS, at, draw, estimates, still
from parts import FAMILIES, BlackBox, Darkness

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.cfgpp import CFGPlusPlus
from lit_align.steering.negative_embedding import NegativeEmbedding
from lit_align.steering.reneg import ReNeg


@pytest.fixture
def file(tmp_path):
    """As the release has it: torch.save of a tensor (1, L, D)."""
    torch.manual_seed(0)
    torch.save(torch.randn(1, 77, 16), tmp_path / "neg.bin")
    return str(tmp_path / "neg.bin")


def test_guidance_leads_away_from_the_released_embedding(file):
    policy, text = still(), torch.load(file)
    x, t, s = at(policy)
    away, cond = policy.denoise(x, t, {"text": text.expand(2, -1, -1)}), policy.denoise(x, t, policy.condition(PROMPTS))
    x0, _ = estimates(policy, x, t, s, NegativeEmbedding(file))
    torch.testing.assert_close(x0, policy.process.to_x0(away + 3 * (cond - away), x, t), atol=1e-4, rtol=1e-4)
    _, eps = estimates(policy, x, t, s, CFGPlusPlus(), NegativeEmbedding(file), w=0.6)
    torch.testing.assert_close(eps, policy.process.to_eps(away, x, t), atol=1e-4, rtol=1e-4)


@FAMILIES
def test_the_empty_prompts_embedding_changes_nothing(family, tmp_path):
    from safetensors.torch import save_file

    policy = still(family)
    save_file({k: v.clone() for k, v in policy.null(1).items()}, tmp_path / "null.safetensors")
    torch.testing.assert_close(draw(policy, NegativeEmbedding(str(tmp_path / "null.safetensors"))), draw(policy))


def test_what_does_not_fit_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match="with guidance_scale 1 it does nothing"):
        draw(still(), NegativeEmbedding(file), w=1.0)
    with pytest.raises(ValueError, match=r"text has shape \(1, 77, 16\) and this policy's"):
        draw(still(StableDiffusion3), NegativeEmbedding(file))
    torch.save({"text": torch.load(file), "pooled": torch.zeros(1, 3)}, tmp_path / "p.bin")
    with pytest.raises(ValueError, match="has no pooled to replace"):
        draw(still(), NegativeEmbedding(str(tmp_path / "p.bin")))
    with pytest.raises(ValueError, match="neither a file nor"):
        NegativeEmbedding("nothing.bin")


def test_an_update_is_adam_on_the_embedding_through_the_last_step():
    policy = still()
    got = ReNeg(Darkness(100.0), 2, lr=0.1, sampler=Sampler(3, 3.0))(policy, PROMPTS, seeds=SEEDS)
    null = policy.null(2)["text"].clone()

    def run(text):
        class Fixed(NegativeEmbedding):
            def __init__(self):
                self.embedding = {"text": text[:1]}

            def predict(self, policy, state, sampler):
                state.null = {"text": text if state.i == 2 else text.detach()}
                super(NegativeEmbedding, self).predict(policy, state, sampler)

        return Sampler(3, 3.0, steering=[Fixed()])(policy, PROMPTS, seeds=SEEDS, grad=torch.tensor([True] * 3)).x

    leaf = null.clone().requires_grad_()
    with torch.enable_grad():
        x = run(leaf)
        reward = Darkness(100.0)(policy.decode(x), PROMPTS)
        (gradient,) = torch.autograd.grad(reward.sum(), leaf)
    moved = null + 0.1 * gradient / (gradient.abs() + 1e-8)
    second = run(moved).detach()
    now = Darkness(100.0)(policy.decode(second), PROMPTS)
    want = torch.where((now > reward).view(-1, 1, 1, 1), second, x.detach())
    assert (now > reward).any()
    torch.testing.assert_close(got.x, want, atol=3e-3, rtol=1e-2)


def test_it_raises_the_reward_and_one_iteration_is_plain_sampling():
    policy, sampler = still(), Sampler(3, 3.0)
    dark = lambda method: Darkness()(policy.decode(method(policy, PROMPTS, seeds=SEEDS).x), PROMPTS)
    assert (dark(ReNeg(Darkness(100.0), 5, lr=0.3, sampler=sampler)) > dark(sampler)).all()
    assert torch.equal(ReNeg(Darkness(), 1, sampler=sampler)(policy, PROMPTS, seeds=SEEDS).x, sampler(policy, PROMPTS, seeds=SEEDS).x)


def test_what_it_needs():
    with pytest.raises(ValueError, match="guidance_scale is 1"):
        ReNeg(Darkness(), sampler=Sampler(2, 1.0))(still(), PROMPTS)
    with pytest.raises(ValueError, match="ReNeg needs the reward's gradient"):
        ReNeg(BlackBox())(still(), PROMPTS)
