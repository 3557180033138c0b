"""EDICT: deterministic sampling of two coupled latents, each step of which has an exact inverse."""

import torch
from torch import Tensor

from lit_align.diffusion.inversion import Predictor, invert, step


class EDICT:
    """Wallace et al., CVPR 2023 (arXiv 2211.12446), eq. 12 to 15. Of two copies x and y of the latents, one takes
    DDIM's step with the prediction at the other, then the other with that at the new one, in turns which is first; and
    the two are mixed.

    Args:
        predict: the sampler's predictions.
        mix: p; each takes a share 1 - p of the other.
    """

    def __init__(self, predict: Predictor, mix: float = 0.93):
        self.predict, self.mix = predict, mix
        self.steps, self.process = predict.sampler.steps, predict.policy.process

    def step(self, x: Tensor, y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """The pair after step i."""
        turned, p, (t, s) = i % 2 == 1, self.mix, self.predict.times(i)
        first, second = (y, x) if turned else (x, y)
        first = step(self.process, first, self.predict(second, i), t, s)
        second = step(self.process, second, self.predict(first, i), t, s)
        x, y = (second, first) if turned else (first, second)
        x = p * x + (1 - p) * y
        return x, p * y + (1 - p) * x

    def inverse(self, x: Tensor, y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """The pair before step i."""
        turned, p, (t, s) = i % 2 == 1, self.mix, self.predict.times(i)
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        first, second = (y, x) if turned else (x, y)
        second = invert(self.process, second, self.predict(first, i), t, s)
        first = invert(self.process, first, self.predict(second, i), t, s)
        return (second, first) if turned else (first, second)

    def sample(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both x_0 of noise x (B, ...). The backward pass computes each step's input again by its inverse, so that
        memory does not grow with the steps; it is as exact as the arithmetic."""
        return _Reversible.apply(self, x, x.clone())

    def invert(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that a pair of x_0 came from."""
        for i in reversed(range(self.steps)):
            x, y = self.inverse(x, y, i)
        return x, y


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, chain: EDICT, x: Tensor, y: Tensor):
        for i in range(chain.steps):
            x, y = chain.step(x, y, i)
        ctx.chain = chain
        ctx.save_for_backward(x, y)
        return x, y

    @staticmethod
    def backward(ctx, of_x: Tensor, of_y: Tensor):
        x, y = ctx.saved_tensors
        for i in reversed(range(ctx.chain.steps)):
            x, y = ctx.chain.inverse(x, y, i)
            with torch.enable_grad():
                pair = x.detach().requires_grad_(), y.detach().requires_grad_()
                after = ctx.chain.step(*pair, i)
                of_x, of_y = torch.autograd.grad(after, pair, (of_x, of_y))
        return None, of_x, of_y
