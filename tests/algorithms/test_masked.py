"""Training when some samples could not be scored."""

import pytest
import torch
from online import forward_process, policy_gradient
from parts import Darkness, alone, by_name, methods_of, move, prompts, tiny, trained, trainer

from lit_align.algorithms.forward_process.awm import AWM
from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.forward_process.dgpo import DGPO
from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.algorithms.parts.advantages import Group, PerReward
from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.pcl import PCL
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient
from lit_align.algorithms.policy_gradient.prdp import PRDP
from lit_align.algorithms.policy_gradient.sdpo import SDPO
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.algorithms.policy_gradient.tempflow_grpo import TempFlowGRPO
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.jpeg import JPEGCompressibility
from lit_align.rewards.multi_reward import MultiReward
from lit_align.rewards.reward import refuse_masks
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.fk_steering import FKSteering

ABLE = [cls for cls in methods_of(PolicyGradient) if cls.takes_masked_rewards]
OPTIONS = {TempFlowGRPO: {"branches": 3}}


class Gaps(Darkness):
    """Darkness, except at the given samples, counted over all calls."""

    masks = True

    def __init__(self, *gaps):
        super().__init__()
        self.gaps, self.n = gaps, 0

    def forward(self, images, prompts):
        r = super().forward(images, prompts)
        for i in range(len(r)):
            if self.n + i in self.gaps:
                r[i] = torch.nan
        self.n += len(r)
        return r


def test_these_methods_leave_samples_out():
    """A method that compares samples, or learns a value from each, must not inherit it."""
    assert {DDPO, FlowGRPO} <= set(ABLE) and not {BranchGRPO, DPOK, PCL, PRDP, SDPO, TDPOR} & set(ABLE)
    assert all(forward_process(cls).takes_masked_rewards == (cls in (DiffusionNFT, AWM)) for cls in (AWM, CRD, DGPO, DiffusionNFT))


@pytest.mark.parametrize("cls", [DiffusionNFT, AWM], **by_name)
def test_the_loss_is_the_mean_over_what_was_scored(cls):
    """The gradient is that of the scored samples alone: what the others' latents are does not matter."""
    method = alone(forward_process(cls, minibatch=4))
    move(method.policy)
    x_0 = torch.randn(3, *method.policy.latent_shape)
    t = method.policy.process.timesteps(5)[1:2].expand(3, 1)
    method.noise = lambda x: torch.ones_like(x)
    m = {"x_0": x_0, "t": t, "advantage": torch.tensor([0.5, 0.0, -1.5]), "cond": method.policy.condition(["a"])}
    step = lambda rows: {"row": torch.tensor(rows), "step": torch.zeros(len(rows), dtype=torch.long)}
    grads = lambda loss: torch.autograd.grad(loss, trained(method.policy))
    masked = m | {"weight": torch.tensor([1.5, 0.0, 1.5])} | step([0, 1, 2]) | {"share": 1.0}
    want = m | {"weight": torch.ones(3)} | step([0, 2]) | {"share": 1.0}
    for a, b in zip(grads(method.batch_loss(masked)), grads(method.batch_loss(want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert any(g.any() for g in grads(method.batch_loss(want)))


def test_weights_of_a_rollout():
    method = alone(forward_process(DiffusionNFT, reward=Gaps(1, 5), advantage=Group()))
    collected = method.collect(next(iter(prompts(2))))
    assert collected["weight"].tolist() == [1.5, 0, 1.5, 1.5, 1.5, 0]
    assert not collected["advantage"][[1, 5]].any() and collected["advantage"].isfinite().all()


def method(cls, **kwargs):
    if issubclass(cls, DiffusionNFT | AWM):
        return forward_process(cls, **kwargs)
    flow = tiny(StableDiffusion3) if issubclass(cls, FlowGRPO) else None
    return policy_gradient(cls, flow, **{"samples_per_prompt": 3} | OPTIONS.get(cls, {}) | kwargs)


@pytest.mark.parametrize("cls", [*ABLE, DiffusionNFT], **by_name)
def test_a_run_goes_on_without_them_and_counts_them(cls, tmp_path):
    t = trainer(tmp_path)
    t.fit(method(cls, reward=Gaps(0, 4, 5)), prompts(2, image=torch.rand(2, 3, 32, 32)))
    logged = t.callback_metrics
    share = 0.25 if cls is TempFlowGRPO else 0.5  # it draws twice as many samples
    assert logged["train/unscored"].item() == pytest.approx(share) and logged["train/loss"].isfinite()
    assert 0 < logged["train/reward"].item() < 1


def test_a_nan_of_another_reward_still_stops_the_run(tmp_path):
    broken = Gaps(2)
    broken.masks = False
    with pytest.raises(FloatingPointError, match="the reward is not finite at step 0 for 'p0'"):
        trainer(tmp_path).fit(method(DDPO, reward=broken), prompts(2))


def test_steering_and_methods_that_compare_samples_refuse_them(tmp_path):
    for make in (lambda: BestOfN(Gaps()), lambda: FKSteering(Gaps())):
        with pytest.raises(ValueError, match="needs a score for every image, and Gaps leaves out"):
            make()
    with pytest.raises(ValueError, match="SDPO needs a score for every image, and Gaps"):
        trainer(tmp_path).fit(policy_gradient(SDPO, reward=MultiReward({"a": Gaps()})), prompts())
    refuse_masks(Darkness(), "nobody")


# Several rewards


@pytest.mark.parametrize("cls", [DDPO, FlowGRPO, DiffusionNFT], **by_name)
def test_gdpos_advantage_takes_several_rewards(cls, tmp_path):
    reward = MultiReward({"dark": Darkness(), "small": JPEGCompressibility()})
    t = trainer(tmp_path)
    t.fit(method(cls, reward=reward, advantage=PerReward()), prompts(2))
    assert {"train/reward/dark", "train/reward/small"} <= set(t.callback_metrics)
    with pytest.raises(ValueError, match="takes one number per image and multi_reward gives 2"):
        trainer(tmp_path).fit(method(cls, reward=reward), prompts(2))
    with pytest.raises(ValueError, match="there is one: use MultiReward"):
        trainer(tmp_path).fit(method(cls, reward=Darkness(), advantage=PerReward()), prompts(2))


def test_sdpo_interpolates_one_reward():
    with pytest.raises(ValueError, match="SDPO interpolates one reward"):
        policy_gradient(SDPO, advantage=PerReward())
