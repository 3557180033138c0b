"""SPO and LPO: preferences between candidates of one denoising step."""

import pytest
import torch
from online import Mean
from parts import FAMILIES, T, alone, prompts, rollout, sgd, spy, tiny, trainer

from lit_align.algorithms.trajectory_preference.spo import SPO, Candidates
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM


def spo(policy, reward=None, **kwargs):
    defaults = {"rollout": rollout(policy, 4), "skip_steps": 1, "candidates": 3, "minibatch": 4, "optimizer": sgd()}
    return SPO(policy=policy, reward=reward or Mean(), **(defaults | kwargs))


@FAMILIES
@pytest.mark.parametrize("needs_x0", [False, True], ids=["latent", "estimate"])
def test_pairs_are_the_best_and_the_worst_candidates_of_one_x_t(needs_x0, family):
    policy, reward = tiny(family), Mean(needs_x0)
    sampler = rollout(policy, 4)
    hook = Candidates(sampler, reward, k=3, skip_steps=1)
    policy.calls.clear()
    with torch.no_grad():
        state = sampler(policy, ["a", "b"], hooks=(hook,))
    trajectory = hook.pairs(state)
    learnt = len(state.extras[hook]["steps"])  # a last step without noise teaches nothing
    assert learnt >= 2 and trajectory.x_t.shape[:2] == (4 * learnt, 1)
    assert trajectory.prompts == ["a", "a", "b", "b"] * learnt
    torch.testing.assert_close(trajectory.cond["text"], policy.condition(trajectory.prompts)["text"])
    x_t_of, x_s_of, t_of, s_of = (getattr(trajectory, key).view(learnt, 2, 2, *getattr(trajectory, key).shape[2:]) for key in ("x_t", "x_s", "t", "s"))
    for i, (x_t, x_0, t, texts) in enumerate(reward.seen):
        told = s_of if needs_x0 else t_of  # LPO's released code tells its latent reward the time at which the step starts
        assert texts == ["a"] * 3 + ["b"] * 3 and torch.equal(t, told[i, 0, :1].expand(6))
        assert (t_of[i] > s_of[i]).all()
        score = (x_0 if needs_x0 else x_t).mean((1, 2, 3)).view(2, 3)
        candidates = x_t.unflatten(0, (2, 3))
        for n in range(2):
            assert torch.equal(x_s_of[i, n, 0], candidates[n, score[n].argmax()])
            assert torch.equal(x_s_of[i, n, 1], candidates[n, score[n].argmin()])
            if i + 1 < learnt:  # sampling goes on from one of the three
                assert any(torch.equal(x_t_of[i + 1, n, 0], c) for c in candidates[n])
        assert torch.equal(x_t_of[i, :, 0], x_t_of[i, :, 1])
    guided = 2 * 2  # two prompts, two branches
    looks = (learnt - (1 if learnt == 3 else 0)) if needs_x0 else 0  # the end needs no estimate
    fresh = 4 - looks  # a step after a look needs no prediction of its own
    assert policy.calls["nfe_forward"] == guided * (fresh + 3 * looks)


def test_a_step_seen_again_has_the_likelihood_it_was_drawn_with():
    method = alone(spo(tiny(), Mean(needs_x0=True)))
    trajectory, advantage = method.collect({"prompt": ["a", "b"]})
    for rows in torch.arange(len(trajectory.t)).split(4):
        m = trajectory.minibatch(rows, torch.zeros(4, dtype=torch.long))
        with torch.no_grad():
            torch.testing.assert_close(method.gaussian(m).log_prob(m["x_s"]), m["log_prob"], atol=1e-5, rtol=1e-5)
    advantage = advantage.view(-1)
    assert len(advantage) == len(trajectory.t) and torch.equal(advantage[::2], -advantage[1::2])


def test_the_threshold_grows_with_the_steps_noise():
    """tanh(gap / 2) against low + (high - low) (std - min) / (max - min), recomputed from the recorded scores."""
    policy, reward = tiny(), Mean(scale=20.0)
    method = alone(spo(policy, reward, threshold=(0.1, 0.9), rollout=Sampler(6, 2.0, DDIM(1.0)), skip_steps=0))
    torch.manual_seed(0)
    _, advantage = method.collect({"prompt": ["a", "b", "c", "d"]})
    grid = policy.process.timesteps(6)
    a, s = policy.process.alpha(grid), policy.process.sigma(grid)
    std = s[1:] * (1 - (a[:-1] * s[1:] / (a[1:] * s[:-1])).square()).sqrt()
    advantage = advantage.view(-1, 8)  # (steps, prompts x 2)
    std = std[: len(advantage)]
    for i, (x_t, _, _, _) in enumerate(reward.seen):
        score = reward.scale * x_t.mean((1, 2, 3)).view(4, 3)
        two = torch.stack([score.amax(1), score.amin(1)], 1).softmax(1)
        bar = 0.1 + 0.8 * (std[i] - std.min()) / (std.max() - std.min())
        assert torch.equal(advantage[i, ::2], (two[:, 0] - two[:, 1] > bar).float())
    assert 0 < advantage[:, ::2].mean() < 1


def test_an_optimizer_step_learns_from_pairs_of_all_prompts_and_steps(tmp_path):
    """Four prompts and three noisy steps give twelve pairs: twelve optimizer steps at most, each pair in one of them."""
    method = spo(tiny(), updates=4, minibatch=100, optimizer=sgd(0.0))
    with spy(method, "evaluate") as evaluate:
        t = trainer(tmp_path)
        t.fit(method, prompts(4))
    pairs = [{(call.args[0].prompts[i], call.args[0].t[i].item()) for i in call.args[2].tolist()} for call in evaluate.call_args_list]
    assert t.global_step == len(pairs) == 4 and all(len(part) == 3 for part in pairs)
    assert len(set.union(*pairs)) == 12 and any(len({time for _, time in part}) > 1 for part in pairs)
    assert any(len({prompt for prompt, _ in part}) > 1 for part in pairs)


def test_undecided_pairs_teach_nothing(tmp_path):
    method = spo(tiny(), Mean(scale=0.0))
    before = [p.detach().clone() for p in method.parameters()]
    trainer(tmp_path).fit(method, prompts())
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters()))


def test_both_candidates_share_a_forward(tmp_path):
    method = spo(tiny(), minibatch=100)
    with spy(method.policy, "predict") as predict:
        trainer(tmp_path).fit(method, prompts(2))
    (learnt,) = [len(prediction) for prediction in predict.results if prediction.requires_grad]
    assert learnt == 2 * 2 * 3  # prompts x guidance x steps with noise


def test_spo_without_noise_says_so():
    method = spo(tiny(), rollout=Sampler(4, 1.0))
    with pytest.raises(ValueError, match="transition with eta > 0"):
        method.collect({"prompt": ["a"]})


def test_a_score_that_is_not_finite_names_its_prompt(tmp_path):
    class Broken(Mean):
        def forward(self, policy, x_t, x_0, t, prompts):
            return T([float("nan") if p == "b" else 1.0 for p in prompts])

    method = alone(spo(tiny(), Broken()))
    with pytest.raises(FloatingPointError, match="for 'b'"):
        method.collect({"prompt": ["a", "b"]})
