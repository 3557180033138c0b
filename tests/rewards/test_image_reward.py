"""ImageReward and VP-Score on files of the published names, against the forward written out on their tensors."""

import pytest
import torch
from blip_parts import artefact, forward, inputs
from reward_parts import PROMPTS, assert_points_up, photo

from lit_align.rewards.image_reward import ImageReward, VPScore

LONG = "red circle two blue square " * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("image_reward")


@pytest.fixture(scope="module")
def state(folder):
    return artefact(folder, "ImageReward.pt")


@pytest.mark.parametrize("size", [(32, 32), (70, 50)], ids=str)
def test_it_is_the_forward_on_the_published_tensors(folder, state, size):
    reward, images = ImageReward(str(folder), str(folder)), photo(*size, n=2)
    want = (forward(state, *inputs(folder, images, PROMPTS, 35)) - 0.16717362830052426) / 1.0333394966054072
    got = reward(images, PROMPTS)
    torch.testing.assert_close(got, want, atol=0.01, rtol=0.0)  # the processor's 8 bits
    assert (got[0] - got[1]).abs() > 0.05 and (reward(images, PROMPTS[::-1]) - got).abs().max() > 0.05
    assert_points_up(reward, images, PROMPTS)


def test_exactly_on_the_same_pixels(folder, state):
    """An image whose values have 8 bits and which is not resized."""
    reward, images = ImageReward(str(folder), str(folder)), (photo(32, 32, n=2) * 255).round() / 255
    want = (forward(state, *inputs(folder, images, PROMPTS, 35)) - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(reward(images, PROMPTS), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spoil", [
    lambda r: [setattr(m, "eps", 1e-2) for m in r.vision.modules() if isinstance(m, torch.nn.LayerNorm)],
    lambda r: [setattr(m, "eps", 1e-2) for m in r.text.modules() if isinstance(m, torch.nn.LayerNorm)],
    lambda r: r.text.register_forward_pre_hook(lambda _, args, given: (args, given | {"is_decoder": True}), with_kwargs=True),
    lambda r: r.text.register_forward_pre_hook(lambda _, args, given: (args, given | {"attention_mask": None}), with_kwargs=True),
], ids=["image eps", "text eps", "causal", "padding"])  # fmt: skip
def test_another_architecture_gives_other_numbers(folder, state, spoil):
    reward, images = ImageReward(str(folder), str(folder)), photo(32, 32, n=2)
    right = reward(images, PROMPTS)
    spoil(reward)
    assert (reward(images, PROMPTS) - right).abs().max() > 1e-3


def test_35_tokens_are_read_and_the_rest_is_counted(folder, state):
    reward, images = ImageReward(str(folder), str(folder)), photo(32, 32).expand(3, -1, -1, -1)
    a, b, c = reward(images, [LONG, LONG + "red", "red circle"])
    torch.testing.assert_close(a, b)
    assert (a - c).abs() > 1e-3 and reward.truncated == 2


def test_dropout_is_off_whoever_turns_training_on(folder, state):
    reward, images = ImageReward(str(folder), str(folder)), photo(32, 32)
    assert not reward.training and any(m.p for m in reward.mlp if isinstance(m, torch.nn.Dropout))
    reward.requires_grad_(False)
    torch.nn.ModuleList([reward]).train()
    assert not any(m.training for m in reward.modules())
    assert torch.equal(reward(images, ["red"]), reward(images, ["red"]))
    reward.requires_grad_(True).train()  # for training a reward model
    assert not torch.equal(reward(images, ["red"]), reward(images, ["red"]))


def test_vp_score_is_the_same_model_not_standardised(tmp_path):
    state = artefact(tmp_path, "VPScore.pt")
    reward, images = VPScore(str(tmp_path), str(tmp_path)), photo(32, 32, n=2)
    torch.testing.assert_close(reward(images, PROMPTS), forward(state, *inputs(tmp_path, images, PROMPTS, 35)), atol=0.01, rtol=0.0)


@pytest.mark.parametrize("spoil,said", [
    (lambda s: s.pop("blip.visual_encoder.norm.bias"), "no BlipVisionModel of this architecture: it lacks post_layernorm.bias"),
    (lambda s: s.pop("blip.text_encoder.embeddings.LayerNorm.bias"), "no BlipTextModel of this architecture: it lacks embeddings.LayerNorm.bias"),
    (lambda s: s.update({"mlp.layers.7.weight": torch.ones(2, 16)}), "no Sequential of this architecture: it has in another shape 7.weight"),
], ids=["image", "text", "mlp"])  # fmt: skip
def test_a_file_of_another_model_is_refused(tmp_path, spoil, said):
    state = artefact(tmp_path, "ImageReward.pt")
    spoil(state)
    torch.save(state, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=said):
        ImageReward(str(tmp_path), str(tmp_path))


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="ImageReward.pt is neither a file"):
        ImageReward(str(tmp_path))
