"""TDPO-R: its advantages, the order of its updates, and when its critic is reset."""

from functools import partial
from unittest import mock

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from online import policy_gradient
from parts import Darkness, T, alone, prompts, rollout, spy, trainer

from lit_align.algorithms.parts.advantages import Advantage
from lit_align.algorithms.policy_gradient.tdpo_r import TDPOR

make = partial(policy_gradient, TDPOR, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))


class AsTheyAre(Advantage):
    """Advantages that are the rewards."""

    def forward(self, prompt_id, reward):
        return reward


class ByPlace(Darkness):
    """0 for the first image, 1 for the second, and so on."""

    def forward(self, images, prompts):
        return torch.arange(float(len(images)))


def test_temporal_advantages_are_normalised_residuals_of_all_steps():
    method = alone(make())
    for p in method.critic.parameters():
        p.data = 0.1 * torch.randn_like(p)
    e, returns = torch.randn(5, 3, 768), torch.randn(5)
    value, advantage = method.temporal(e, returns)
    x = e.double().flatten(0, 1)
    for layer in method.critic.layers:
        x = x @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(value.double(), x.view(5, 3), rtol=1e-3, atol=1e-4)
    r = returns.double()[:, None] - x.view(5, 3)
    want = (r - r.sum() / 15) / (r - r.sum() / 15).square().mean().sqrt()
    torch.testing.assert_close(advantage.double(), want, rtol=1e-3, atol=1e-3)
    assert method.critic.training


def test_residuals_are_normalised_over_all_ranks():
    method = alone(make())
    two = mock.patch.object(method, "all_gather", lambda x: torch.stack([x, x + 4.0]))  # the other rank's samples are better
    with two, mock.patch.object(method.critic, "forward", lambda e: e[..., 0]):
        _, advantage = method.temporal(torch.zeros(2, 2, 768), T([1.0, 3.0]))
    torch.testing.assert_close(advantage, T([[-2.0, -2.0], [0.0, 0.0]]) * 5**-0.5 - 5**-0.5)  # of 1, 3, 5, 7


def test_the_policy_learns_from_what_the_critic_did_not_foresee(tmp_path):
    method = make(reward=ByPlace(), advantage=AsTheyAre(), samples_per_prompt=1)
    values = mock.patch.object(method.critic, "forward", lambda e: torch.linspace(0, 1, e[..., 0].numel()).view(e.shape[:-1]))
    with values, spy(method, "evaluate") as evaluate:
        trainer(tmp_path).fit(method, prompts(2))
    residual = T([0.0, 1.0])[:, None] - torch.linspace(0, 1, 6).view(2, 3)
    torch.testing.assert_close(evaluate.call_args_list[0].args[1], (residual - residual.mean()) / residual.std(correction=0))


@pytest.mark.parametrize(
    "value,old,want", [(0.5, 0.5, 0.125), (0.9, 0.5, 0.5 * 0.3**2), (0.1, 0.5, 0.5 * 0.9**2), (1.6, 0.5, 0.5 * 0.6**2)]
)
def test_the_value_loss_is_clipped_around_the_old_value(value, old, want):
    """For a return of 1 and a band of 0.2: what overtakes the band towards the return gains nothing more."""
    assert alone(make()).value_loss(T([value]), T([old]), T([1.0])).item() == pytest.approx(want, rel=1e-5)


def test_an_optimizer_step_for_each_denoising_step_of_each_share(tmp_path):
    method = make(updates=2, samples_per_prompt=3, minibatch=2)
    t, steps = trainer(tmp_path), []
    with spy(method, "evaluate") as evaluate, spy(method, "embedded") as embedded:
        t.fit(method, prompts(2))
    assert t.global_step == 3 * 2
    minibatches = [(call.args[2].tolist(), call.args[3].tolist()) for call in evaluate.call_args_list]
    cells = [(r, k) for rows, ks in minibatches for r, k in zip(rows, ks)]
    assert sorted(cells) == [(r, k) for r in range(6) for k in range(3)]
    for number in range(6):
        steps.append([r for rows, _ in minibatches[2 * number : 2 * number + 2] for r in rows])  # of 2 and of 1
        assert len(steps[-1]) == 3  # half of the trajectories, each once
    assert all(set(steps[2 * j] + steps[2 * j + 1]) == set(range(6)) for j in range(3))
    assert len({tuple(k for r, k in cells if r == row) for row in range(6)}) > 1  # each in an order of its own
    with torch.no_grad():
        want = F.adaptive_avg_pool2d(method.policy.decode(evaluate.call_args.args[0].x_t[4, 1:2]), 16).flatten()
    torch.testing.assert_close(embedded.results[0][4, 1], want, rtol=1e-4, atol=1e-5)


def test_policy_and_critic_are_clipped_each_by_itself(tmp_path):
    method, norms = make(max_grad_norm=1e-6), []
    clip = method.on_before_optimizer_step

    def watched(optimizer):
        clip(optimizer)
        norms.append(
            [
                torch.cat([p.grad.flatten() for p in g["params"] if p.grad is not None]).norm().item()
                for g in optimizer.param_groups
            ]
        )

    method.critic.layers[-1].weight.data.fill_(0.1)
    with mock.patch.object(method, "on_before_optimizer_step", watched):
        trainer(tmp_path).fit(method, prompts())
    assert len(norms[0]) == 2 and max(n[1] for n in norms) > 0.5e-6  # the critic's is not crushed by the policy's
    assert all(n <= 1.01e-6 for pair in norms for n in pair)


def test_the_critic_learns_the_returns_from_where_it_starts():
    method, e = alone(make()), torch.rand(64, 768)
    returns = 0.7 + e[:, 0]
    optimizer = torch.optim.AdamW(method.parameter_groups()[1]["params"], lr=1e-3)
    losses = []
    for i in range(150):
        if i % 10 == 0:
            old = method.temporal(e[:, None], returns)[0].flatten()
        loss = method.value_loss(method.critic(e), old, returns).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(0.5 * returns.square().mean().item(), rel=1e-3)
    assert losses[-1] < 0.15 * losses[0]


def test_resets_come_on_schedule(tmp_path):
    for every, want in ((0, []), (2, [2, 4])):
        method = make(reset_every=every, updates=1, samples_per_prompt=1)
        with spy(method, "reset") as resets, spy(method.critic, "reset") as done:
            trainer(tmp_path).fit(method, prompts(1, 4))
        assert [call.args[1] for call in resets.call_args_list] == want and done.call_count == len(want)


def test_stopping_and_going_on_changes_no_bit(tmp_path):
    """Over two resets, one on either side of the stop."""

    def run(epochs, ckpt_path=None):
        L.seed_everything(3, verbose=False)
        method = make(reset_every=2, rollout=rollout(None, 2))
        t = trainer(tmp_path, max_epochs=epochs)
        t.fit(method, prompts(2, 2), ckpt_path=ckpt_path, weights_only=False)
        return method, t

    whole, _ = run(2)
    _, t = run(1)
    t.save_checkpoint(tmp_path / "half.ckpt")
    parts, t = run(2, tmp_path / "half.ckpt")
    assert t.global_step == 4 * 2 * 2
    a, b = whole.state_dict(), parts.state_dict()
    tensors = [k for k in a if not k.endswith("_extra_state")]
    assert a.keys() == b.keys() and any(k.startswith("critic.") for k in tensors)
    assert all(torch.equal(a[k], b[k]) for k in tensors)
    states = [[v for s in m.optimizers().optimizer.state.values() for v in s.values()] for m in (whole, parts)]
    assert all(torch.equal(x, y) for x, y in zip(*states, strict=True))
