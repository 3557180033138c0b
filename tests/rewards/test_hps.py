"""HPS in its three versions, on files of the published names: open_clip's and OpenAI's tensors under `state_dict`."""

import pytest
import torch
import torch.nn.functional as F
from reward_parts import PROMPTS, assert_points_up, clip_folder, open_clip, photo, pil, published_ids, quick_gelu

from lit_align.rewards.clip import load_clip
from lit_align.rewards.hps import HPSv1, HPSv2, HPSv21
from lit_align.rewards.preprocess import letterbox
from lit_align.rewards.social_reward import SocialReward


def artefact(tmp_path, file, act, nested=True):
    """A folder with a configuration and tokenizer, the published file, and the model in it with its tokenizer."""
    folder = clip_folder(tmp_path / "clip", "quick_gelu" if act is quick_gelu else "gelu")
    _, words = load_clip(folder)
    official = open_clip(words, act)
    state = official.state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / file)
    return folder, str(tmp_path / file), official, words


@pytest.mark.parametrize("cls,file", [(HPSv2, "HPS_v2_compressed.pt"), (HPSv21, "HPS_v2.1_compressed.pt")], ids=["v2", "v2.1"])
@pytest.mark.parametrize("size", [(32, 32), (64, 40), (30, 90)], ids=str)
def test_version_2_is_the_cosine_on_the_whole_image(tmp_path, cls, file, size):
    folder, checkpoint, official, words = artefact(tmp_path, file, F.gelu)
    reward, images = cls(checkpoint, folder), photo(*size, n=2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))
    with torch.no_grad():
        want = official.cosine((letterbox(images, 32) - mean) / std, published_ids(words, PROMPTS))
    got = reward(images, PROMPTS)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert got.abs().max() <= 1 and (got[0] - got[1]).abs() > 1e-3
    assert_points_up(reward, images, PROMPTS)
    if size == (30, 90):  # the left end is seen
        changed = images.clone()
        changed[..., :15] = 1 - changed[..., :15]
        assert (reward(changed, PROMPTS) - got).abs().min() > 1e-4


@pytest.mark.parametrize("cls,file,nested", [(HPSv1, "hpc.pth", True), (SocialReward, "classifier_checkpoint.pth", False)], ids=["hps", "social"])
def test_version_1_and_social_reward_are_the_cosine_on_the_centre(tmp_path, cls, file, nested):
    from transformers import CLIPImageProcessorPil

    folder, checkpoint, official, words = artefact(tmp_path, file, quick_gelu, nested)
    reward, images = cls(checkpoint, folder), photo(70, 50, n=2)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([pil(image) for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        want = official.cosine(pixels, published_ids(words, PROMPTS))
    torch.testing.assert_close(reward(images, PROMPTS), want, atol=3e-3, rtol=0.0)
    assert_points_up(reward, images, PROMPTS)
    changed = images.clone()
    changed[:, :, :5] = 0.0  # above the central square
    assert torch.equal(reward(changed, PROMPTS), reward(images, PROMPTS))


def test_the_versions_read_different_files_of_one_repository():
    import inspect

    default = lambda cls: inspect.signature(cls).parameters["checkpoint"].default
    assert default(HPSv2) == "xswu/HPSv2/HPS_v2_compressed.pt" and default(HPSv21) == "xswu/HPSv2/HPS_v2.1_compressed.pt"
