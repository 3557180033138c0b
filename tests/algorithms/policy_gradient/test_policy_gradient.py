"""The loop of the family: rollouts, and optimizer steps on them."""

from functools import partial
from unittest import mock

import pytest
import torch
from online import Mean, policy_gradient, quiet
from parts import FAMILIES, Darkness, move, prompts, sgd, spy, tiny, trainer

from lit_align.algorithms.parts.advantages import Group
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.policy_gradient.pcl import PCL
from lit_align.algorithms.policy_gradient.prdp import PRDP
from lit_align.algorithms.policy_gradient.sdpo import SDPO
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR
from lit_align.algorithms.trajectory_preference.d3po import D3PO
from lit_align.algorithms.trajectory_preference.spo import SPO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM

ddpo = partial(policy_gradient, DDPO)


def test_a_step_is_seen_again_with_its_own_advantage_and_the_distribution_it_was_drawn_from():
    method = quiet(ddpo())
    trajectory, _ = method.draw_trajectories({"prompt": ["a", "b"], "columns": {}})
    move(method)
    rows, steps = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1])
    seen = method.evaluate(trajectory, torch.arange(6.0).view(2, 3), rows, steps)
    assert seen.advantage.tolist() == [5.0, 0.0, 4.0]
    assert torch.equal(seen.old_mean, trajectory.mean[rows, steps]) and torch.equal(seen.old_log_prob, trajectory.log_prob[rows, steps])
    assert not torch.allclose(seen.gaussian.mean, seen.old_mean, atol=1e-5)


def test_what_is_logged_is_the_mean_over_the_batch(tmp_path):
    """Minibatches of 4, 4 and 4 denoising steps."""
    method, t, values = ddpo(), trainer(tmp_path), iter([0.0, 1.0, 2.0])
    with mock.patch.object(method, "loss", side_effect=lambda step: next(values) + 0 * step.log_prob) as loss:
        t.fit(method, prompts())
    assert loss.call_count == 3 and t.callback_metrics["train/loss"] == pytest.approx(1.0)


def test_a_rollout_is_passed_over_inner_epochs_times(tmp_path):
    t = trainer(tmp_path)
    t.fit(ddpo(updates=2, inner_epochs=3), prompts())
    assert t.global_step == 6


@FAMILIES
def test_a_rollout_and_its_updates_move_the_adapter_alone(tmp_path, family):
    method, t = ddpo(tiny(family), updates=2), trainer(tmp_path)
    before = {k: v.clone() for k, v in method.policy.denoiser.state_dict().items()}
    with spy(method, "evaluate") as evaluate:
        t.fit(method, prompts())
    ratios = [step.ratio for step in evaluate.results]
    after = method.policy.denoiser.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all("lora_" in k for k in moved)
    assert t.global_step == 2  # updates
    assert all((r == 1).all() for r in ratios[: len(ratios) // 2])  # exactly, before the first update
    assert any((r != 1).any() for r in ratios[len(ratios) // 2 :])


@pytest.mark.parametrize("cls", [DDPO, TDPOR], ids=lambda c: c.__name__)
def test_a_loss_that_is_not_finite_is_named_before_it_moves_a_weight(tmp_path, cls):
    method = policy_gradient(cls)
    before = [p.detach().clone() for p in method.parameters()]
    nan = mock.patch.object(method, "loss", side_effect=lambda step: step.log_prob * float("nan"))
    with nan, pytest.raises(FloatingPointError, match="the loss is nan at step 0 on .'p"):
        trainer(tmp_path).fit(method, prompts())
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


def test_a_rollout_without_noise_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the rollout has none: give it a transition with noise"):
        trainer(tmp_path).fit(ddpo(rollout=Sampler(3, 2.0)), prompts())


@FAMILIES
def test_nothing_sees_more_than_a_minibatch_at_once(tmp_path, family):
    """And the parts of a rollout are put together in order."""
    method = ddpo(tiny(family), samples_per_prompt=4, minibatch=3)
    policy, size = method.policy, lambda call: len(call.args[0])
    with spy(policy, "predict") as predict, spy(policy, "decode") as decode, spy(method.reward, "components") as reward, spy(method, "collect") as collect:
        trainer(tmp_path).fit(method, prompts())
    assert max(size(call) for call in predict.call_args_list) == 6  # guided: twice
    assert max(size(call) for call in decode.call_args_list) == 3
    assert [size(call) for call in reward.call_args_list] == [3, 3, 2]
    trajectory, _ = collect.results[0]
    assert trajectory.prompts == sum((call.args[1] for call in reward.call_args_list), []) == ["p0"] * 4 + ["p1"] * 4
    assert trajectory.x_t.shape[:2] == (8, 3)
    torch.testing.assert_close(trajectory.cond["text"], policy.condition(trajectory.prompts)["text"])


def test_a_nan_reward_is_named(tmp_path):
    class Broken(Darkness):
        def forward(self, images, prompts):
            return super().forward(images, prompts) * float("nan")

    method = ddpo(reward=Broken())
    with pytest.raises(FloatingPointError, match="the reward is not finite at step 0 for 'p0'"):
        trainer(tmp_path).fit(method, prompts())


class Bright(Darkness):
    def forward(self, images, prompts):
        return 20 + 100 * super().forward(images, prompts)


@pytest.mark.parametrize("cls", [DPOK, PCL], ids=lambda c: c.__name__)
def test_a_value_functions_gradient_does_not_shrink_the_policys(tmp_path, cls):
    """A reward of 20 makes the value's gradient large; both are clipped to 0.1, each by itself."""
    method, norms = policy_gradient(cls, reward=Bright(), max_grad_norm=0.1, optimizer=sgd(0.0)), []
    norm = lambda group: torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm().item()
    clip = method.on_before_optimizer_step

    def watched(optimizer):
        before = [norm(group) for group in optimizer.param_groups]
        clip(optimizer)
        norms.append((before, [norm(group) for group in optimizer.param_groups]))

    with mock.patch.object(method, "on_before_optimizer_step", watched):
        trainer(tmp_path).fit(method, prompts(2))
    for before, after in norms:
        assert before[1] > 1  # the value's
        assert after == pytest.approx([min(n, 0.1) for n in before], rel=1e-3)


@pytest.mark.parametrize("cls", [PRDP, SDPO, D3PO], ids=lambda c: c.__name__)
def test_pairs_are_of_one_prompt(cls):
    with pytest.raises(ValueError, match="compares 2 trajectories of a prompt: give a multiple of 2"):
        policy_gradient(cls, samples_per_prompt=3).draw_trajectories({"prompt": ["a"] * 3, "columns": {}})


@pytest.mark.parametrize("cls", [DDPO, D3PO, TDPOR], ids=lambda c: c.__name__)
@pytest.mark.parametrize("updates", [1, 3, 4])
def test_an_inner_epoch_makes_exactly_that_many_steps_and_sees_everything_once(tmp_path, cls, updates):
    """Five prompts of which `chunk(4)` would make three shares."""
    method = policy_gradient(cls, updates=updates, samples_per_prompt=2 if cls is D3PO else 1)
    with spy(method, "evaluate") as evaluate:
        t = trainer(tmp_path)
        t.fit(method, prompts(5))
    steps = 3 if cls is TDPOR else 1  # an optimizer step for each denoising step
    assert t.global_step == updates * steps
    seen = sorted(cell for call in evaluate.call_args_list for cell in zip(call.args[2].tolist(), call.args[3].tolist()))
    assert len(seen) == len(set(seen)) and len(seen) % (5 * method.samples_per_prompt) == 0


@pytest.mark.parametrize("cls", [DDPO, D3PO, TDPOR, SPO], ids=lambda c: c.__name__)
def test_more_steps_than_there_is_to_share_out_are_refused(tmp_path, cls):
    more = {"reward": Mean(), "skip_steps": 0, "rollout": Sampler(2, 1.0, DDIM(1.0))} if cls is SPO else {}
    with pytest.raises(ValueError, match=f"updates is 50, and a training step of {cls.__name__} has [0-9]+ samples or pairs"):
        trainer(tmp_path).fit(policy_gradient(cls, updates=50, **more), prompts(2))


def test_what_a_method_would_ignore_is_refused():
    with pytest.raises(ValueError, match="DPOK has no use for Group: leave advantage out"):
        policy_gradient(DPOK, advantage=Group())
    with pytest.raises(ValueError, match="DDPO learns from whole rollouts and drops no caption"):
        policy_gradient(DDPO, caption_dropout=0.1)
