"""A policy whose data are a mixture of Gaussians in one dimension, known exactly."""

import torch
from parts import Analytic

from lit_align.diffusion.process import Flow


class Mixture(Analytic):
    """The exact flow of a mixture of N(m_k, d^2) with weights w_k."""

    def __init__(self, means=(-1.0, 1.0), weights=(0.7, 0.3), d=0.3):
        super().__init__(d=d, process=Flow(), shape=(1, 1, 1))
        self.means, self.weights = torch.tensor(means), torch.tensor(weights)

    def denoise(self, x, t, cond, guidance_scale=1.0):
        a, s = self.process.coefficients(t, x)
        m, var = self.means, a**2 * self.d**2 + s**2  # (K,), (B, 1, 1, 1)
        log_w = self.weights.log() - (x - a * m) ** 2 / (2 * var)  # (B, 1, 1, K)
        posterior = m + a * self.d**2 / var * (x - a * m)  # of x_0 in each component
        x_0 = (log_w.softmax(-1) * posterior).sum(-1, keepdim=True)
        pred = (x - a * x_0) / s - x_0
        self.count(pred)
        return pred


def tilted(x, lmbda):
    """Mean of p(x) exp(lambda x) by draws x of p, and the share above 0."""
    w = (lmbda * x).softmax(0)
    return (w * x).sum().item(), (w * (x > 0)).sum().item()


def tilted_mixture(policy, lmbda):
    """The same in closed form."""
    m = policy.means + lmbda * policy.d**2
    w = (policy.weights.log() + lmbda * policy.means).softmax(0)
    above = 1 - torch.distributions.Normal(m, policy.d).cdf(torch.zeros(()))
    return (w * m).sum().item(), (w * above).sum().item()
