import math

import pytest
from online import compared, policy_gradient
from parts import T

from lit_align.algorithms.trajectory_preference.pso import PSO


def test_psos_argument_is_bounded_by_its_beta_times_the_band():
    pso = policy_gradient(PSO)
    worst = pso.loss(compared(T([-9.0, 9.0]), T([1.0, -1.0]))).item()
    assert worst == pytest.approx(math.log1p(math.exp(50 * (math.log(1.1) - math.log(0.9)))), abs=1e-4)
