import math

import torch
from online import online_preference
from parts import T, move

from lit_align.algorithms.preference.nash_md import Mixture, NashMD
from lit_align.algorithms.preference.preference import Errors


def test_the_mixtures_ends_are_policy_and_reference():
    method = online_preference(NashMD)
    move(method, 0.2)
    draw = lambda *hooks: method.rollout(method.policy, ["a"], seeds=[3], hooks=hooks).x
    with method.policy.reference():
        reference = draw()
    torch.testing.assert_close(draw(Mixture(0.0)), draw())
    torch.testing.assert_close(draw(Mixture(1.0)), reference)


def test_nash_md_drives_the_gap_to_the_preference():
    method = online_preference(NashMD, beta=2.0)
    e = Errors(*(T([x, x]) for x in (0.0, 0.3, 0.0, 0.0)), batch={"p": T([0.8, 0.5])})
    torch.testing.assert_close(method.loss(e), T([(0.6 - 0.6) ** 2, 0.6**2]))
    p = method.preference(T([0.7, 0.5]), T([0.2, 0.5]))
    torch.testing.assert_close(p, T([1 / (1 + math.exp(-0.5 / 0.25)), 0.5]))
