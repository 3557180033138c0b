import pytest
import torch
import torch.nn.functional as F
from blip_parts import GELU, artefact, forward, inputs
from reward_parts import PROMPTS, assert_points_up, photo

from lit_align.rewards.cycle_reward import CycleReward


@pytest.mark.parametrize("variant", ["Combo", "I2T", "T2I"])
def test_it_is_the_forward_on_the_published_tensors(tmp_path, variant):
    """With GELU between the layers of its MLP, 128 tokens, and not standardised."""
    state = artefact(tmp_path, f"CycleReward-{variant}.pth", GELU)
    reward, images = CycleReward(str(tmp_path), variant, str(tmp_path)), photo(70, 50, n=2)
    prompts = [PROMPTS[0], "red circle two blue square " * 20]
    got = reward(images, prompts)
    torch.testing.assert_close(got, forward(state, *inputs(tmp_path, images, prompts, 128), F.gelu), atol=0.005, rtol=0.0)
    assert reward.truncated == 0 and (got - reward(images, [prompts[0], "red circle"])).abs()[1] > 1e-3  # 102 tokens are read
    reward(images, [prompts[0], prompts[1] * 2])
    assert reward.truncated == 1
    assert_points_up(reward, images, prompts)


def test_imagerewards_file_is_refused(tmp_path):
    artefact(tmp_path, "CycleReward-Combo.pth")
    with pytest.raises(ValueError, match="it lacks 8.bias"):
        CycleReward(str(tmp_path), tokenizer=str(tmp_path))
