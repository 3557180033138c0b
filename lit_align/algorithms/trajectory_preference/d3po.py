"""D3PO: Diffusion-DPO's logistic loss on every denoising step of two of the policy's own trajectories."""

from lit_align.algorithms.trajectory_preference.trajectory_preference import TrajectoryPreference


class D3PO(TrajectoryPreference):
    """Yang et al. 2023, arXiv 2311.13231, eq. 15: the loss of TrajectoryPreference at each step of the better
    trajectory and the worse one of a prompt. Both start from the same noise.

    Args:
        beta: coefficient of the log-ratios.
        refresh_every: training steps (a round) after which the policy becomes the reference, as in the paper's runs
            with human feedback; 0: never.
    """

    noise_group_size = 2

    def __init__(self, beta: float = 0.1, **kwargs):
        super().__init__(beta=beta, **kwargs)
