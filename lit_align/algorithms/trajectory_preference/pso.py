"""PSO: preferences for few-step distilled models, at the times of their own sampler."""

from lit_align.algorithms.trajectory_preference.trajectory_preference import TrajectoryPreference


class PSO(TrajectoryPreference):
    """Miao et al. 2024, arXiv 2410.03190, eq. 9, online: TrajectoryPreference's loss with a large beta on the few steps
    of a distilled model, without guidance, from two independent initial noises. The last, deterministic step is not
    trained.

    Args:
        beta: coefficient of the log-ratios.
    """

    def __init__(self, beta: float = 50.0, **kwargs):
        super().__init__(beta=beta, **kwargs)
