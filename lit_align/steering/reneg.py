"""ReNeg: each sample's negative embedding follows the gradient of a reward."""

import torch

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler, last_k
from lit_align.rewards.reward import Reward
from lit_align.steering.negative_embedding import read_embedding
from lit_align.steering.noise_optimizer import NoiseOptimizer
from lit_align.steering.outer_sampler import Best
from lit_align.steering.reward_guidance import check_gradient


class _Negative(Hook):
    """Guidance leads away from given text embeddings.

    Args:
        text: (P, L, D).
    """

    def __init__(self, text: torch.Tensor):
        self.text = text

    def on_init(self, policy, state):
        state.extras[self] = self.text
        super().on_init(policy, state)

    def predict(self, policy, state, sampler):
        state.null = policy.null(len(state.x)) | {"text": state.extras[self]}
        super().predict(policy, state, sampler)


class ReNeg(NoiseOptimizer):
    """Li et al., CVPR 2025 (arXiv 2412.19637), per-sample negative embeddings: Adam on -r(c, x_0) in the embedding that
    guidance leads away from, from the empty prompt's or a learnt one on; returns the sample with the highest reward.
    The gradient passes through the last steps. (Training code was not released; the constants are ours.)

    Args:
        reward: r, differentiable.
        iterations: samples drawn, at most; the first one has the first embedding. With `max_nfe`, as many as it allows.
        lr: of Adam.
        last_steps: steps that the gradient passes through.
        file: of the first embedding, see NegativeEmbedding (default: the policy's own, of the empty prompt).
        sampler: is guided (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards and backwards that a prompt may take.
    """

    def __init__(
        self,
        reward: Reward,
        iterations: int = 10,
        lr: float = 0.01,
        last_steps: int = 1,
        file: str | None = None,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, iterations, sampler, max_nfe)
        self.lr, self.last_steps = lr, last_steps
        self.embedding = read_embedding(file)["text"] if file else None

    def check(self, policy):
        if self.guidance_scale == 1:
            raise ValueError("ReNeg learns what guidance leads away from; guidance_scale is 1: set another.")
        check_gradient("ReNeg", self.reward)

    def search(self, policy, start, hooks, budget):
        text = policy.null(len(start.x))["text"] if self.embedding is None else self.embedding
        text = text.float().to(start.x.device).expand(len(start.x), *text.shape[1:]).clone().requires_grad_()
        adam, best, a_run = torch.optim.Adam([text], self.lr), Best(), self.sampler.nfe(hooks=hooks)
        for k in range(self.iterations):
            last = k == self.iterations - 1 or not budget.allows(2 * a_run + 2 * a_run / self.steps * self.last_steps)
            state = self.start(start)
            with torch.set_grad_enabled(not last):
                grad = None if last else last_k(self.steps, self.last_steps)
                state = self.sampler.run(policy, state, (*hooks, _Negative(text)), grad)
                reward = self.score(policy, state)
            best.offer(state.x.detach(), reward.detach())
            if last:
                break
            (text.grad,) = torch.autograd.grad(-reward.sum(), text)
            adam.step()
        return self.result(start, best.x, best.reward)
