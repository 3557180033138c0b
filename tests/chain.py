"""A policy whose reverse chain is known in closed form."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn

from lit_align.diffusion.process import VP


class Chain(nn.Module):
    """A policy of one dimension whose reverse chain is linear and Gaussian: that of data N(0.5, 0.6^2). Its control is
    a function (x, i) -> shift of the step's mean."""

    latent_shape, device, adapter, image_axes = (1,), torch.device("cpu"), None, 3

    def __init__(self, steps):
        super().__init__()
        betas = torch.linspace(0.001, 0.01, 100, dtype=torch.float64)  # not all noise at the end: x_0 depends on x_T
        self.process = VP((1 - betas).cumprod(0), "sample", "linspace", 0)
        self.denoiser, self.in_reference, self.control = nn.Linear(1, 1), False, None
        self.calls, self.grid = Counter(), self.process.timesteps(steps)
        a, s = self.process.alpha(self.grid).double(), self.process.sigma(self.grid).double()
        (a_t, a_s), (s_t, s_s) = (a[:-1], a[1:]), (s[:-1], s[1:])
        std2 = s_s**2 * (1 - (a_t * s_s / (a_s * s_t)) ** 2)  # eta = 1
        share = (s_s**2 - std2).sqrt() / s_t
        self.gain = a_s - share * a_t  # mean = share x_t + gain x_0-hat
        k = 0.36 * a_t / (0.36 * a_t**2 + s_t**2)  # x_0-hat = 0.5 + k (x_t - 0.5 a_t)
        self.k, self.a_t = k, a_t
        self.A, self.b, self.std2 = share + self.gain * k, self.gain * 0.5 * (1 - k * a_t), std2

    def condition(self, texts, columns=None):
        return {"text": torch.zeros(len(texts), 1, 1)}

    def summary(self, cond):
        return cond["text"].mean(1)

    @contextmanager
    def reference(self):
        self.in_reference = True
        yield
        self.in_reference = False

    def denoise(self, x, t, cond, guidance_scale=1.0):
        i = int((self.grid == t[0]).nonzero()[0])
        x_0 = 0.5 + self.k[i] * (x.double() - 0.5 * self.a_t[i])
        if not self.in_reference and self.control:
            x_0 = x_0 + self.control(x.double(), i) / self.gain[i]
        return x_0.float()

    def branches(self, x, t, cond, null=None):
        return (self.denoise(x, t, cond),) * 2

    def guided(self, null, cond, w):
        return null + w * (cond - null)

    def downstream(self):
        """d_i: x_0 = ... + d_i x_s of step i; then mean slope a and offset of x_0 in x_T, and its variance."""
        d = torch.cat([self.A.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.float64)])
        return d, self.A.prod(), (d * self.b).sum(), (d**2 * self.std2).sum()
