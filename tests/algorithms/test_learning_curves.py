"""Methods of the reward family raise a reward of a tiny model's latents, whose decoder passes little on."""

import lightning as L
import pytest
import torch
from parts import prompts, trainer

from lit_align.algorithms.forward_process.awm import AWM
from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.forward_process.dgpo import DGPO
from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.algorithms.parts.advantages import Group, LeaveOneOut, WinRate
from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.pcl import PCL
from lit_align.algorithms.policy_gradient.prdp import PRDP
from lit_align.algorithms.policy_gradient.sdpo import SDPO
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.algorithms.reward_gradient.draft import DRaFT, DRaFTLV
from lit_align.algorithms.reward_gradient.elegant import ELEGANT
from lit_align.algorithms.reward_gradient.lasro import LaSRO
from lit_align.algorithms.reward_gradient.refl import ReFL
from lit_align.algorithms.reward_gradient.seiko import SEIKO
from lit_align.algorithms.reward_gradient.srpo import SRPO
from lit_align.algorithms.reward_weighted.bond import BOND
from lit_align.algorithms.reward_weighted.human_feedback import RewardWeighted
from lit_align.algorithms.reward_weighted.max_min import MaxMin
from lit_align.algorithms.reward_weighted.raft import RAFT
from lit_align.algorithms.reward_weighted.rwr import RWR
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward
from lit_align.rewards.step_reward import StepReward


class Lowness(Reward):
    name, differentiable = "lowness", True

    def forward(self, images, prompts):
        return -images.flatten(1).mean(1)


class Mean(StepReward):
    """w times the mean of what is decoded, w from 0."""

    needs_x0 = False

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, policy, x_t, x_0, t, prompts):
        return self.w * x_t[:, :3].flatten(1).mean(1)


NOISY, FLOW, ODE = Sampler(4, 1.0, DDIM(1.0)), Sampler(4, 1.0, FlowSDE(0.7)), Sampler(4, 1.0)
SOME = {"samples_per_prompt": 8, "minibatch": 64}
CLIP = SOME | {"clip_range": 0.1}
GROUP = CLIP | {"advantage": Group()}
CURVES = {  # name -> method, policy, sampler, its own options
    "ddpo": (DDPO, StableDiffusion, NOISY, GROUP),
    "rloo": (DDPO, StableDiffusion, NOISY, CLIP | {"advantage": LeaveOneOut()}),
    "tdpo_r": (TDPOR, StableDiffusion, NOISY, GROUP | {"updates": 1, "samples_per_prompt": 32}),
    "dpok": (DPOK, StableDiffusion, NOISY, CLIP | {"reward_weight": 100.0}),
    "prdp": (PRDP, StableDiffusion, NOISY, CLIP | {"beta": 1.0}),
    "pcl": (PCL, StableDiffusion, NOISY, SOME | {"alpha": 0.1, "value_lr": 1e-3}),
    "sdpo": (SDPO, StableDiffusion, NOISY, GROUP),
    "flow_grpo": (FlowGRPO, StableDiffusion3, FLOW, GROUP),
    "flow_grpo, a window": (FlowGRPO, StableDiffusion3, FLOW, GROUP | {"window": 2, "beta": 0.0}),
    "grpo_guard": (FlowGRPO, StableDiffusion3, FLOW, GROUP | {"guard": True, "beta": 0.0}),
    "pref_grpo": (FlowGRPO, StableDiffusion3, FLOW, CLIP | {"advantage": WinRate(), "beta": 0.0}),
    "branch_grpo": (BranchGRPO, StableDiffusion3, FLOW, {"splits": (0, 1, 2), "minibatch": 64, "clip_range": 0.1}),
    "nft": (DiffusionNFT, StableDiffusion3, ODE, SOME),
    "awm": (AWM, StableDiffusion3, ODE, SOME),
    "dgpo": (DGPO, StableDiffusion3, ODE, SOME),
    "crd": (CRD, StableDiffusion3, ODE, SOME),
    "draft": (DRaFT, StableDiffusion, NOISY, {}),
    "draft_lv": (DRaFTLV, StableDiffusion, NOISY, {}),
    "alignprop": (AlignProp, StableDiffusion, NOISY, {}),
    "refl": (ReFL, StableDiffusion, NOISY, {"min_step": 1}),
    "elegant": (ELEGANT, StableDiffusion, NOISY, {"alpha": 1e-3, "learn_initial": False}),
    "seiko": (SEIKO, StableDiffusion, NOISY, {"epochs": 20, "updates": 4, "minibatch": 4, "accumulate": 1, "samples_per_prompt": (4,)}),
    "srpo": (SRPO, StableDiffusion, NOISY, {}),
    "lasro": (LaSRO, StableDiffusion, NOISY, {"surrogate": Mean(), "weights": (0, 0, 0, 1), "anchor_weight": 0.1, "surrogate_lr": 0.1, "pretrain": 2}),
    "reward_weighted": (RewardWeighted, StableDiffusion3, ODE, SOME),
    "rwr": (RWR, StableDiffusion3, ODE, SOME | {"tau": 20.0}),
    "raft": (RAFT, StableDiffusion3, ODE, SOME),
    "bond": (BOND, StableDiffusion3, ODE, SOME | {"n": 4}),
    "maxmin": (MaxMin, StableDiffusion3, ODE, SOME | {"tau": 20.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_the_reward_rises(tmp_path, name):
    cls, family, sampler, options = CURVES[name]
    L.seed_everything(0, verbose=False)
    reward = {"annotators": {"low": Lowness(), "again": Lowness()}} if cls is MaxMin else {"reward": Lowness()}
    method = cls(policy=family("tiny"), rollout=sampler, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **reward, **options)
    method.policy.decode = lambda z: z[:, :3]

    @torch.no_grad()
    def judged():  # the same noise every time
        return Lowness()(method.policy.decode(sampler(method.policy, ["p0", "p1"] * 32, seeds=range(64)).x), None)

    before = judged()
    # what reward_weighted holds on to
    scenes = {"image_latents": torch.zeros(4, *method.policy.latent_shape)}
    trainer(tmp_path).fit(method, prompts(4, 10, **scenes))
    gain = judged() - before
    assert gain.mean() > 3 * gain.std() / 8, f"{before.mean():.4f} + {gain.mean():.4f}"  # three standard errors
