"""CHATS: guidance from a policy of losing samples to one of winning samples."""

from lit_align.diffusion.conditioning import fill_conditioning
from lit_align.diffusion.hook import Hook
from lit_align.policies.policy import Policy
from lit_align.steering.second_policy import check_alike, frozen


class CHATS(Hook):
    """Fu et al., ICML 2025 (arXiv 2502.12579): e_win(c) + s (e_win(c) - e_lose(c~)) with embeddings c~ = (1 + alpha)
    null - alpha c. e_win is the sampled policy. Two evaluations a step, as with classifier-free guidance.

    s is the sampler's `guidance_scale` - 1, so that a scale of 1 is e_win alone, as everywhere; the paper's s = 5 is a
    guidance_scale of 6.

    Args:
        lose: the policy trained on losing samples.
        alpha: how far c~ lies beyond the empty prompt.
    """

    replaces = ("predict",)

    def __init__(self, lose: Policy, alpha: float = 0.5):
        self.lose, self.alpha = frozen(lose), alpha

    def check(self, policy, sampler):
        if sampler.guidance_scale == 1:
            raise ValueError("CHATS: with guidance_scale 1 (s = 0) the losing policy does nothing: set 6 (s = 5).")
        check_alike("CHATS", policy, self.lose)

    def nfe(self, inside, steps):
        return 2 * steps

    def predict(self, policy, state, sampler):
        null = policy.null_of(state.cond) if state.null is None else state.null
        null, cond = fill_conditioning([null, state.cond])
        # masks and ids are the prompt's
        beyond = {
            k: (1 + self.alpha) * null[k] - self.alpha * c if c.is_floating_point() else c for k, c in cond.items()
        }
        win = policy.denoise(state.x, state.t, cond)
        lose = self.lose.denoise(state.x, state.t, beyond)
        state.branches = {"null": lose, "cond": win}
        state.read(policy.process, policy.guided(lose, win, sampler.guidance_scale))
