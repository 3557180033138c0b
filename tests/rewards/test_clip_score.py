"""CLIPScore against transformers' own processor and model, and against torchmetrics."""

import pytest
import torch
from reward_parts import PROMPTS, assert_points_up, by_hand, clip_folder, photo

from lit_align.rewards.clip_score import CLIPScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"), "quick_gelu")


@pytest.mark.parametrize("size", [(32, 32), (70, 50), (40, 90)], ids=str)
def test_it_is_100_times_the_cosine(folder, size):
    reward, images = CLIPScore(folder), photo(*size, n=2)
    cosine = by_hand(folder, images, PROMPTS)
    got = reward(images, PROMPTS)
    torch.testing.assert_close(got, 100 * cosine, atol=0.3, rtol=0.0)  # the processor rounds to 8 bits
    assert (got[0] - got[1]).abs() > 1
    torch.testing.assert_close(reward(images.flip(0), PROMPTS[::-1]), got.flip(0))


def test_it_is_torchmetrics_score(folder):
    """Through a wrapper: torchmetrics 1.9 does not know what transformers 5 returns."""
    from torchmetrics.multimodal.clip_score import CLIPScore as Metric
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = CLIPModel.from_pretrained(folder)
            self.config = self.model.config

        def get_image_features(self, pixels):
            return self.model.get_image_features(pixel_values=pixels).pooler_output

        def get_text_features(self, ids, mask):
            return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), CLIPTokenizer.from_pretrained(folder))
    metric = Metric(lambda: (Wrapper(), processor))
    images = photo(50, 70, n=2)
    want = metric((images * 255).round().byte(), PROMPTS)
    assert max(CLIPScore(folder)(images, PROMPTS).mean().item(), 0) == pytest.approx(want.item(), abs=0.3)


def test_its_gradient_points_up(folder):
    assert_points_up(CLIPScore(folder), photo(50, 70, n=2), PROMPTS)


def test_equal_prompts_are_encoded_once(folder):
    reward, images = CLIPScore(folder), photo(32, 32, n=3)
    seen, real = [], reward.model.get_text_features
    reward.model.get_text_features = lambda input_ids: seen.append(len(input_ids)) or real(input_ids=input_ids)
    got = reward(images, ["b", "a", "b"])
    assert seen == [2]
    torch.testing.assert_close(got, torch.cat([reward(images[i : i + 1], [p]) for i, p in enumerate("bab")]))
