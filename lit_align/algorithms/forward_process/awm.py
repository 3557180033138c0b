"""AWM: policy gradient with the denoising loss as negative log-likelihood."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.forward_process.forward_process import ForwardProcess, NoisedBatch
from lit_align.algorithms.parts.clipping import clipped_surrogate
from lit_align.ranges import NOT_NEGATIVE


class AWM(ForwardProcess):
    """Xue et al. 2025, arXiv 2509.25050, as released. With l = mean |v_theta - target|^2 at a (t, eps),

        L = max(-A rho, -A clip(rho, 1 - e, 1 + e)) + beta mean |v_theta - v_ref|^2 + beta_ema mean |v_theta - v_old|^2,
        rho = exp(log p_theta - log p_act),    log p = -w(l, t),    A = advantage / max_advantage,

    both log p at the same (t, eps). w is l itself (plain), or sigma_t ((l + d)^p - d^p) / p, d = 1e-10 (ghuber; the
    paper's t is the flow's sigma_t). The behaviour policy p_act is the current one (on-policy: rho is 1 in value), or
    with `off_policy` the old one, a moving average. Prediction types other than a flow's are our port.

    A sample is trained at one time from each of `strata` equal intervals of the rollout's steps, drawn for each sample
    (released: for a minibatch). Also logs `train/ratio`.

    Args:
        beta: of the distance from the reference: 1e-3 for GenEval, 3e-3 for OCR, 1e-4 for PickScore; 0: no reference.
        beta_ema: of the distance from the old policy; 0: none.
        w: plain or ghuber.
        power: p of ghuber.
        clip_range: e; has no effect on-policy.
        strata: times per sample.
        min_step: first of the rollout's steps that is trained; 0 for PickScore.
        off_policy: sample from the old policy; required for more than one update.
        fraction: of the rollout's steps, from noise, that is trained.
    """

    uses_reference, ranges = True, {"beta": NOT_NEGATIVE}

    def __init__(
        self,
        beta: float = 0.003,
        beta_ema: float = 1.0,
        w: Literal["plain", "ghuber"] = "ghuber",
        power: float = 0.25,
        clip_range: float = 1.0,
        strata: int = 6,
        min_step: int = 1,
        off_policy: bool = False,
        fraction: float = 0.9,
        decay: tuple[float, float, float, int] = (0.0, 0.001, 0.3, 0),
        **kwargs,
    ):
        super().__init__(fraction=fraction, decay=decay, **kwargs)
        if self.updates > 1 and not off_policy:
            raise ValueError(
                f"updates is {self.updates}, and the behaviour policy is kept for one: "
                "set updates: 1 or off_policy: true."
            )
        self.beta, self.beta_ema, self.w, self.power = beta, beta_ema, w, power
        self.clip_range, self.strata, self.min_step, self.off_policy = clip_range, strata, min_step, off_policy
        self.uses_reference, self.uses_old = beta > 0, beta_ema > 0 or off_policy

    def sampling_policy(self) -> AbstractContextManager:
        return self.policy.old() if self.off_policy else nullcontext()

    def times(self, n: int) -> Tensor:
        grid = self.rollout.timesteps(self.policy)[:-1]
        first = min(self.min_step, len(grid) - 1)
        end = max(first + 1, int(self.fraction * len(grid)))
        edges = torch.linspace(first, end, self.strata + 1).long().to(grid.device)
        low, width = edges[:-1], edges[1:] - edges[:-1]
        return grid[low + (torch.rand(n, self.strata, device=grid.device) * width).long()]

    def log_prob(self, pred: Tensor, b: NoisedBatch) -> Tensor:
        """log p = -w(l, t): (M,)."""
        error, p = self.policy.error(pred, b.target), self.power
        if self.w == "plain":
            return -error
        return -self.policy.process.sigma(b.t) * ((error + 1e-10) ** p - 1e-10**p) / p

    def loss(self, b: NoisedBatch) -> Tensor:
        log_prob = self.log_prob(b.pred, b)
        log_prob_act = self.log_prob(b.old, b) if self.off_policy else log_prob.detach()
        rho = (log_prob - log_prob_act).exp()
        self.log_mean("train/ratio", rho.detach().mean(), len(rho))
        loss = clipped_surrogate(rho, b.advantage / self.max_advantage, self.clip_range)
        if self.beta:
            loss = loss + self.beta * self.policy.error(b.pred, b.ref)
        return loss + self.beta_ema * self.policy.error(b.pred, b.old) if self.beta_ema else loss
