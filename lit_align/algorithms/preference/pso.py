"""PSO: D3PO for few-step distilled models, on the stochastic steps of their own sampler."""

from lit_align.algorithms.preference.d3po import D3PO


class PSO(D3PO):
    """Miao et al. 2024, arXiv 2410.03190, eq. 9, online: D3PO's loss with a large beta on the few steps of a
    distilled model, without guidance, from two independent starts; the last, deterministic step is left out.

    Args:
        beta: coefficient of the log-ratios.
        clip_range: half the width of the ratio's band.
    """

    def __init__(self, beta: float = 50.0, clip_range: float = 0.1, **kwargs):
        super().__init__(beta=beta, clip_range=clip_range, **kwargs)

    def start(self, n: int) -> None:
        return None
