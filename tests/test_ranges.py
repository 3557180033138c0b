import pytest
from parts import Darkness, prompts, trainer

from lit_align.algorithms.forward_process.awm import AWM
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.algorithms.trajectory_preference.d3po import D3PO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

ONLINE = {"reward": Darkness(), "rollout": Sampler(2, 1.0, DDIM(1.0))}
WRONG = {
    "DiffusionDPO: beta is 0; it must be greater than 0": (DiffusionDPO, {"beta": 0}),
    "DiffusionDPO: beta is -1.0; it": (DiffusionDPO, {"beta": -1.0}),
    "DiffusionDPO: caption_dropout is 2; it must be in": (DiffusionDPO, {"caption_dropout": 2}),
    "DDPO: inner_epochs is 0; it must be 1 or more": (DDPO, ONLINE | {"inner_epochs": 0}),
    "DDPO: clip_range is -0.1": (DDPO, ONLINE | {"clip_range": -0.1}),
    "Sampler: guidance_scale is nan; it must be a finite number": (DDPO, ONLINE | {"rollout": Sampler(2, float("nan"), DDIM(1.0))}),
    "DDIM: eta is 1.5; it must be in": (DDPO, ONLINE | {"rollout": Sampler(2, 1.0, DDIM(1.5))}),
    "Sampler: steps is 0; it must be 1 or more": (DiffusionDPO, {"sampler": Sampler(0)}),
    "the advantage compares the samples of a prompt, and every prompt has one": (FlowGRPO, ONLINE | {"samples_per_prompt": 1}),
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_a_number_outside_its_range_is_refused_in_one_sentence(tmp_path, said):
    cls, given = WRONG[said]
    with pytest.raises(ValueError) as error:
        trainer(tmp_path).fit(cls(policy=StableDiffusion("tiny", LoRA(rank=2)), **given), prompts())
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_class_may_allow_more(tmp_path):
    for cls in (FlowGRPO, AWM):
        given = {"rollout": Sampler(2, 1.0, FlowSDE()), "samples_per_prompt": 2}
        trainer(tmp_path).fit(cls(policy=StableDiffusion3("tiny", LoRA(rank=2)), reward=Darkness(), beta=0.0, **given), prompts())


def test_a_shared_noise_that_the_first_step_replaces_is_refused(tmp_path):
    """DDIM with eta 1 on a flow: x_s does not depend on x_T but through the estimate of x_0."""
    assert Sampler(4, 1.0, DDIM(1.0)).forgets_noise(StableDiffusion3("tiny", LoRA(rank=2)))
    for sampler, family in ((Sampler(4, 1.0, DDIM(1.0)), StableDiffusion), (Sampler(4, 1.0, FlowSDE()), StableDiffusion3), (Sampler(4), StableDiffusion3)):
        assert not sampler.forgets_noise(family("tiny", LoRA(rank=2)))
    method = D3PO(policy=StableDiffusion3("tiny", LoRA(rank=2)), reward=Darkness(), rollout=Sampler(4, 1.0, DDIM(1.0)))
    with pytest.raises(ValueError, match="D3PO starts 2 samples from the same noise, and the first step of DDIM replaces it wholly"):
        trainer(tmp_path).fit(method, prompts())
