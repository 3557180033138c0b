"""Training of step rewards."""

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from online import Mean
from parts import T, alone, spy, tiny, trainer

from lit_align.algorithms.reward_modeling.step_preference import StepPreference
from lit_align.policies import tiny as tiny_models
from lit_align.rewards.latent import LatentReward
from lit_align.rewards.step_aware import StepAwarePreference


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel with random weights in a folder, as the hub has it."""
    folder = str(tmp_path_factory.mktemp("clip"))
    for part in tiny_models.CLIPModel():
        part.save_pretrained(folder)
    return folder


def pair_batch(n=4, same=False, **more):
    torch.manual_seed(3)
    win = torch.rand(n, 3, 16, 16)
    batch = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "win": win, "lose": win if same else torch.rand(n, 3, 16, 16)}
    return batch | more


@pytest.mark.parametrize("kind", ["latent", "step_aware"])
def test_training_moves_the_reward_alone_and_leaves_it_on_disk(kind, clip, tmp_path):
    torch.manual_seed(0)
    reward = LatentReward(tiny(), projection_dim=8) if kind == "latent" else StepAwarePreference(clip)
    method = StepPreference(policy=tiny(), reward=reward, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    before = {n: p.detach().clone() for n, p in method.policy.named_parameters()}
    mine = {n: p.detach().clone() for n, p in reward.named_parameters()}
    pairs = pair_batch()
    pairs |= {"win": 0.3 * pairs["win"] + 0.7, "lose": 0.3 * pairs["lose"]}  # bright ones are preferred
    torch.manual_seed(0)
    easy = mock.patch.object(method.policy.process, "sample_timesteps", lambda n, device: torch.full((n,), 10))  # little noise
    with easy, spy(method, "batch_loss") as batch_loss:
        trainer(tmp_path).fit(method, torch.utils.data.DataLoader([pairs] * (60 if kind == "latent" else 2), batch_size=None))
    losses = batch_loss.results
    assert kind == "step_aware" or sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert any(not torch.equal(mine[n], p) for n, p in reward.named_parameters())
    assert all(torch.equal(before[n], p) for n, p in method.policy.named_parameters())
    x, t = torch.randn(2, *method.policy.latent_shape), T([5, 600])
    if kind == "latent":
        again = LatentReward(tiny(), projection_dim=8, checkpoint=str(tmp_path / "reward/latent_reward.safetensors"))
    else:
        again = StepAwarePreference(clip, str(tmp_path / "reward/step_aware.safetensors"))
    with torch.no_grad():
        got, want = (r(method.policy, x, x, t, ["a", "b"]) for r in (again, reward))
    torch.testing.assert_close(got, want, atol=2e-2, rtol=1e-2)  # latent rewards are stored in float16


def test_one_image_twice_has_margin_0_and_a_tie_is_half_a_win():
    method = alone(StepPreference(policy=tiny(), reward=Mean()))
    gray = lambda batch, key: batch[key].mean(1, keepdim=True).expand(-1, 4, -1, -1)[..., ::2, ::2]
    mock.patch.object(method, "latents", gray).start()
    assert method.margin(pair_batch(same=True)).abs().max() == 0
    assert method.batch_loss(pair_batch(same=True)).item() == pytest.approx(math.log(2))
    batch = pair_batch()
    torch.manual_seed(0)
    d = method.margin(batch)
    torch.manual_seed(0)
    tie = method.batch_loss(batch | {"label": torch.full((4,), 0.5)})
    torch.testing.assert_close(tie, (-0.5 * F.logsigmoid(d) - 0.5 * F.logsigmoid(-d)).mean())
