"""D3PO: Diffusion-DPO's logistic loss at every denoising step of two trajectories of the policy."""

from lit_align.algorithms.trajectory_preference.trajectory_preference import TrajectoryPreference


class D3PO(TrajectoryPreference):
    """Yang et al. 2023, arXiv 2311.13231, eq. 15: TrajectoryPreference's loss at each step of a prompt's better and
    worse trajectory. Both start from the same noise.

    Args:
        beta: coefficient of the log-ratios.
        refresh_every: training steps (a round) between updates of the reference to the policy, as in the paper's runs
            with human feedback; 0: never.
    """

    noise_group_size = 2

    def __init__(self, beta: float = 0.1, **kwargs):
        super().__init__(beta=beta, **kwargs)
