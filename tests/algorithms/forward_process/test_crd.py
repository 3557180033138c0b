import torch
from online import forward_process, noised_batch
from parts import T, alone

from lit_align.algorithms.forward_process.crd import CRD


def test_crds_equation_on_numbers():
    method = alone(forward_process(CRD, beta=0.5, kl_weight=0.1, kl_floor=0.01))
    pred, old, target, ref = [0.5, 0.1, 0.9], [0.2, -0.3, 0.4], [0.0, 0.2, 0.3], [0.6, 0.6, 0.0]
    advantage = [2.0, -1.0, 0.0]
    v = noised_batch(method, pred, old, target, advantage, ref)
    implicit = [abs(o - y) - abs(p - y) for p, o, y in zip(pred, old, target)]  # d^2 / |d|
    r = [a / 10 + 0.5 for a in advantage]
    want = []
    for i in range(3):
        gap = 0.5 * (implicit[i] - sum(implicit) / 3) - (r[i] - sum(r) / 3)
        want.append(5 / 0.5 * gap**2 + (0.01 + r[i] * 0.09) * (pred[i] - ref[i]) ** 2)
    torch.testing.assert_close(method.loss(v), T(want), atol=1e-6, rtol=1e-5)


def test_crd_is_at_rest_where_the_implicit_reward_is_the_given_one_up_to_a_prompts_constant():
    method = alone(forward_process(CRD, beta=2.0, kl_weight=0.0, kl_floor=0.0))
    advantage, constant = T([3.0, -1.0, -2.0, 0.5, 0.5, -1.0]), T([0.7, 0.7, 0.7, 1.1, 1.1, 1.1])
    implicit = (advantage / 10) / 2 + constant  # R_theta = r / beta + a constant of the prompt
    old = (implicit + 0.4).tolist()  # |old| - |pred| = R_theta with the target at 0 and pred at 0.4
    v = noised_batch(method, [0.4] * 6, old, [0.0] * 6, advantage.tolist())
    loss = method.loss(v)
    assert loss.abs().max() < 1e-10
    off = noised_batch(method, [0.4] * 5 + [0.5], old, [0.0] * 6, advantage.tolist())
    assert (method.loss(off) > 1e-4).tolist() == [False, False, False, True, True, True]
