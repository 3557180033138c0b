import pytest
import torch
import torch.nn.functional as F
from reward_parts import PROMPTS, assert_points_up, clip_folder, photo, pil

from lit_align.rewards.aesthetic import AestheticScore

SHAPES = {"layers.0": (1024, 768), "layers.2": (128, 1024), "layers.4": (64, 128), "layers.6": (16, 64), "layers.7": (1, 16)}


def published(seed=0):
    """A file of the names and shapes of sac+logos+ava1-l14-linearMSE.pth."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g) / shape[-1] ** 0.5
    return {k: v for name, (n, m) in SHAPES.items() for k, v in ((f"{name}.weight", normal(n, m)), (f"{name}.bias", normal(n)))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"), "quick_gelu", projection=768)


def test_it_is_an_affine_function_of_the_unit_feature(folder, tmp_path):
    """The five layers multiplied out, on the feature of transformers' own processor and vision model."""
    from transformers import CLIPImageProcessorPil, CLIPModel

    state = published()
    torch.save(state, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    reward, images = AestheticScore(str(tmp_path / "sac+logos+ava1-l14-linearMSE.pth"), folder), photo(70, 50, n=2)
    w, b = torch.eye(768), torch.zeros(768)
    for name in SHAPES:
        w, b = state[f"{name}.weight"] @ w, state[f"{name}.weight"] @ b + state[f"{name}.bias"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        e = CLIPModel.from_pretrained(folder).get_image_features(**processor([pil(i) for i in images], return_tensors="pt")).pooler_output
    want = (F.normalize(e, dim=1) @ w.T + b).squeeze(1)
    got = reward(images, PROMPTS)
    torch.testing.assert_close(got, want, atol=2e-3, rtol=0.0)
    assert (got[0] - got[1]).abs() > 5e-3 and torch.equal(got, reward(images, ["", "anything else"]))
    assert_points_up(reward, images, PROMPTS)
    torch.testing.assert_close(reward.embed(images).norm(dim=1), torch.ones(2))


def test_a_sibling_with_activations_is_refused(folder, tmp_path):
    """ava+logos-l14-reluMSE.pth has other layer numbers."""
    state = published()
    torch.save({k.replace("layers.2", "layers.3"): v for k, v in state.items()}, tmp_path / "relu.pth")
    with pytest.raises(ValueError, match="relu.pth holds no Sequential of this architecture: it lacks 2.bias"):
        AestheticScore(str(tmp_path / "relu.pth"), folder)
