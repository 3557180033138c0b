import pytest
import torch
from online import policy_gradient
from parts import Darkness, T, prompts, spy, tiny, trainer

from lit_align.algorithms.policy_gradient.branch_grpo import BranchGRPO, Tree
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, Gaussian


class Given(Darkness):
    """Rewards as they are given, one list for a batch."""

    def __init__(self, *rewards):
        super().__init__()
        self.rewards = rewards

    def forward(self, images, prompts):
        return T(self.rewards)


def make(steps, **kwargs):
    defaults = {"rollout": Sampler(steps, 1.0, DDIM(1.0)), "samples_per_prompt": 1, "minibatch": 8}
    return policy_gradient(BranchGRPO, **(defaults | kwargs))


def learnt_from(method, tmp_path, n):
    """The rows and steps that a training step evaluates, and its trajectories and advantages."""
    with spy(method, "evaluate") as evaluate, spy(method, "collect") as collect:
        trainer(tmp_path).fit(method, prompts(n))
    cells = [cell for call in evaluate.call_args_list for cell in zip(call.args[2].tolist(), call.args[3].tolist())]
    return cells, *collect.results[0]


def test_a_node_is_judged_by_its_leaves_and_learnt_from_once(tmp_path):
    reward = T([[1.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    method = make(5, reward=Given(*reward.flatten().tolist()), splits=(0, 2), minibatch=100, max_advantage=9.0)
    learnt, tr, a = learnt_from(method, tmp_path, 2)
    assert tr.prompts == ["p0"] * 4 + ["p1"] * 4
    x = tr.x_s[:4]
    for i in (0, 1):  # two nodes
        assert torch.equal(x[0, i], x[1, i]) and torch.equal(x[2, i], x[3, i]) and not torch.equal(x[0, i], x[2, i])
    assert all(not torch.equal(x[0, i], x[1, i]) for i in (2, 3, 4)) and torch.equal(tr.x_t[0, 2], tr.x_t[1, 2])
    torch.testing.assert_close(a[:4, 0], T([1.0, 1.0, -1.0, -1.0]) / 2**0.5)  # nodes 2 and 0
    leaf = (reward[0] - 1.0) / reward[0].std()
    torch.testing.assert_close(a[:4, 4], leaf)
    assert not a[4:].any()
    steps = method.trained_steps(tr).tolist()
    want = {(row, i) for i in steps for row in ((0, 2, 4, 6) if i < 2 else range(8))}
    assert set(learnt) == want and len(learnt) == len(want)


def test_noise_is_larger_where_the_tree_splits_and_the_likelihood_is_the_plain_steps():
    policy, drawn = tiny(), {}
    for noise in (1.0, 4.0):
        torch.manual_seed(0)
        drawn[noise] = Sampler(4, 1.0, DDIM(1.0))(policy, ["p0"], hooks=(Tree((0,), noise),), record=True).trajectory
    moved = {noise: tr.x_s[:, 0] - tr.mean[:, 0] for noise, tr in drawn.items()}  # from one x_t
    torch.testing.assert_close(moved[4.0], 4 * moved[1.0], atol=1e-5, rtol=1e-5)
    tr = drawn[4.0]
    std = DDIM(1.0)(policy.process, tr.x_t[:, 0], tr.x_t[:, 0], tr.x_t[:, 0], tr.t[:, 0], tr.s[:, 0]).std
    torch.testing.assert_close(tr.log_prob[:, 0], Gaussian(tr.mean[:, 0], std).log_prob(tr.x_s[:, 0]))


def test_after_the_last_split_pruning_leaves_the_best_and_the_worst_leaf(tmp_path):
    method = make(4, reward=Given(1.0, 0.5, 0.7, 0.2), splits=(0, 1), prune=True)
    learnt, tr, _ = learnt_from(method, tmp_path, 1)
    steps = method.trained_steps(tr).tolist()
    after = {(row, i) for row in (0, 3) for i in steps if i > 1}
    assert after and set(learnt) == {(0, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 1)} | after


@pytest.mark.parametrize("slide_every, skipped", [(0, [{3, 4}] * 3), (1, [{3, 4}, {2, 3}, {1, 2}, {1, 2}])])
def test_steps_pruned_by_depth_slide_to_the_last_split(tmp_path, slide_every, skipped):
    method = make(6, splits=(0, 1), skip=(3, 4), slide_every=slide_every)
    with spy(method, "update") as update:
        trainer(tmp_path).fit(method, prompts(1, len(skipped)))
    assert [set(range(6)) - set(call.args[3].tolist()) for call in update.call_args_list] == skipped


def test_trees_of_any_rewards_are_learnt_from_in_as_many_parts():
    """Ranks draw different trees, and each backward pass is a meeting point of all ranks."""
    method = make(4, splits=(0, 1, 2), prune=True, minibatch=2)
    steps, parts = torch.arange(4), []
    for leaves in ((0,), (0, 7)):  # all alike, or not
        method.kept = torch.zeros(1, 8, dtype=torch.bool)
        method.kept[0, list(leaves)] = True
        parts.append([len(rows) for rows, _ in method.minibatches(torch.arange(8)[:, None], steps)])
    assert len(parts[0]) == len(parts[1]) and sum(parts[0]) == 15 and sum(parts[1]) == 16 and min(parts[0]) > 0
