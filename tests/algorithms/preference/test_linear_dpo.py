"""Linear-DPO against hand numbers."""

import itertools

import lightning as L
import pytest
import torch
from parts import ADAPTERS, sgd, tiny, trainer
from preferences import at, batch, pair

from lit_align.algorithms.preference.linear_dpo import LinearDPO
from lit_align.policies.adapters import Full
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.ranges import check_ranges


def graded(gap):
    """Errors of a gap whose winner and loser can be differentiated by."""
    e = at(gap)
    return e._replace(win=e.win.requires_grad_(), lose=e.lose.requires_grad_())


def test_given_errors(policy):
    assert LinearDPO(policy=policy, beta=100.0).loss(pair()).item() == pytest.approx(-0.006, abs=1e-8)  # the paper's 500
    at_the_start = pair(0.2, 0.5, 0.2, 0.5)
    assert LinearDPO(policy=policy, beta=1000.0).loss(at_the_start).item() == pytest.approx(-0.15, abs=1e-8)


@pytest.mark.parametrize("gap,omega", [(0.0, 0.5), (0.1, 0.4), (-0.1, 0.6), (9.0, 0.2), (-9.0, 0.8)])
def test_a_pairs_weight_is_clipped_on_both_sides_and_a_constant(policy, gap, omega):
    e = graded(gap)
    loss = LinearDPO(policy=policy, beta=1.0, eta=0.2).loss(e)
    assert loss.item() == pytest.approx(omega * (e.win - e.lose).item(), abs=1e-8)
    win, lose = torch.autograd.grad(loss.sum(), (e.win, e.lose))
    assert win.item() == pytest.approx(omega, abs=1e-8) and lose.item() == pytest.approx(-omega, abs=1e-8)


def test_without_eta_a_pair_that_is_told_apart_teaches_nothing(policy):
    e = graded(0.6)
    (win,) = torch.autograd.grad(LinearDPO(policy=policy, beta=1.0).loss(e).sum(), e.win)
    assert win.item() == 0


@ADAPTERS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_reference_is_an_average_of_the_policy_that_moves_after_every_optimizer_step(tmp_path, adapter, accumulate):
    """Its weights, read through its predictions: for LoRA and a fully trained denoiser, ref <- 0.75 ref + 0.25 theta."""
    method = LinearDPO(policy=tiny(StableDiffusion, adapter), reference_decay=0.75, optimizer=sgd(0.5))
    policy, after = method.policy, []
    weights = lambda: {n.replace(".default.", "."): p.detach().clone() for n, p in policy.denoiser.named_parameters() if p.requires_grad}

    def reference():
        if isinstance(adapter, Full):
            return {n: p.clone() for n, p in policy._frozen["reference"].named_parameters()}
        return {n.replace(".reference.", "."): p.detach().clone() for n, p in policy.denoiser.named_parameters() if ".reference." in n}

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            after.append((weights(), reference(), 0))

        def on_train_batch_end(self, trainer, module, *_):
            after.append((weights(), reference(), trainer.global_step))

    data = [batch(policy, seed=i) for i in range(4)]
    options = {"callbacks": [Watch()], "accumulate_grad_batches": accumulate}
    trainer(tmp_path, **options).fit(method, torch.utils.data.DataLoader(data, batch_size=None))
    assert after[-1][2] == 4 // accumulate
    for (_, old, before), (theta, new, now) in itertools.pairwise(after):
        for name in new:
            want = 0.75 * old[name] + 0.25 * theta[name] if now > before else old[name]
            torch.testing.assert_close(new[name], want, atol=1e-7, rtol=1e-5)
    assert any(not torch.equal(after[0][1][name], after[-1][1][name]) for name in after[0][1])


def test_without_a_decay_the_reference_stays(policy):
    assert not LinearDPO(policy=policy).moves_reference
    with pytest.raises(ValueError, match="reference_decay is 1.5; it must be in"):
        check_ranges(LinearDPO(policy=policy, reference_decay=1.5), LinearDPO.ranges)
