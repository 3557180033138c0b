"""Promptist's second stage: PPO of the rewriter against an image reward."""

import torch
from torch import Tensor, nn

from lit_align.algorithms.parts.clipping import clipped_surrogate
from lit_align.algorithms.prompt.prompt import PromptPolicy
from lit_align.steering.writing import diverse_beams, write


class AdaptiveKL(nn.Module):
    """The coefficient of a KL penalty, which follows a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2):
    times 1 + clip(KL / target - 1, -0.2, 0.2) n / horizon after n texts. In checkpoints.

    Args:
        coefficient: the first one.
        target: KL of a text, summed over its tokens; None: the coefficient stays.
        horizon: in texts.
    """

    def __init__(self, coefficient: float, target: float | None, horizon: int):
        super().__init__()
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, n: int) -> None:
        if self.target is not None:
            self.coefficient *= 1 + min(max(kl / self.target - 1, -0.2), 0.2) * n / self.horizon

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.coefficient, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.coefficient = float(state)


class PromptistPPO(PromptPolicy):
    """Hao et al., NeurIPS 2023 (arXiv 2212.09611, section 3.2, and the released code): the reward stands at the last
    token, a KL penalty at each; advantages by GAE, in units of the batch's standard deviation. Texts are found by
    diverse beam search, one of whose groups is taken at random.

    The paper's reward is AestheticScore plus Shortfall of CLIPScore (threshold 28, weight 0.2), with AestheticScore as
    baseline. `Promptist` draws with the trained model.

    Args:
        separator: between prompt and text.
        groups: of the diverse beam search; 0: texts are drawn at random from the model.
        diversity: its penalty.
        min_new_tokens: the longest text of a batch is drawn between this and `max_new_tokens`.
        kl_weight: first coefficient of the KL penalty.
        kl_target: what the coefficient adapts to; None: it stays.
        kl_horizon: texts in which it adapts.
        gae_lambda: of GAE, with discount 1.
        value_weight: see PromptPolicy.
    """

    def __init__(
        self,
        separator: str = " Rephrase:",
        groups: int = 16,
        diversity: float = 1.0,
        min_new_tokens: int = 15,
        kl_weight: float = 0.2,
        kl_target: float | None = 0.2,
        kl_horizon: int = 10_000,
        gae_lambda: float = 0.95,
        value_weight: float = 2.3,
        **kwargs,
    ):
        super().__init__(value_weight=value_weight, **kwargs)
        self.separator, self.groups, self.diversity = separator, groups, diversity
        self.min_new_tokens, self.gae_lambda = min_new_tokens, gae_lambda
        self.kl = AdaptiveKL(kl_weight, kl_target, kl_horizon)

    def write(self, prompts):
        lm, asked = self.language_model, [prompt.strip() + self.separator for prompt in prompts]
        longest = int(torch.randint(min(self.min_new_tokens, self.max_new_tokens), self.max_new_tokens + 1, ()))
        if not self.groups:
            draw = lambda logits, hidden: (torch.multinomial(logits.softmax(-1), 1).squeeze(-1), {})
            return write(lm, asked, draw, longest)
        found = diverse_beams(lm, asked, self.groups, self.diversity, longest)
        return found.part(torch.arange(len(asked)) * self.groups + torch.randint(self.groups, (len(asked),)))

    def texts(self, prompts, written):
        padding = self.language_model.tokenizer.pad_token_id
        said = self.language_model.spell(torch.where(written.made, written.tokens, padding))
        return [text.strip() or prompt for text, prompt in zip(said, prompts)]

    def targets(self, old, start, made, reward):
        log_ratio = (old["token"] - start["token"]) * made
        self.kl.update(log_ratio.sum(1).mean().item(), len(made))
        last = made.sum(1, keepdim=True) - 1
        rewards = (-self.kl.coefficient * log_ratio).scatter_add(1, last, reward[:, None].to(log_ratio))
        advantage = gae(rewards, old["value"] * made, self.gae_lambda) * made
        returns = advantage + old["value"]
        mean = advantage[made].mean()
        std = advantage[made].std(unbiased=False).clamp(min=1e-8)
        return {"advantage": (advantage - mean) / std * made, "returns": returns}

    def batch_loss(self, m):
        now, made, learnt = self.now(m), m["made"], m["learnt"]
        ratio = (now["token"] - m["old"]["token"]).exp()
        actor = clipped_surrogate(ratio, learnt["advantage"], self.clip_range)[made].mean()
        critic = self.value_loss(now["value"], m["old"]["value"], learnt["returns"])[made].mean()
        return (actor + 0.5 * self.value_weight * critic) * m["share"]


def gae(rewards: Tensor, values: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, eq. 16) with discount 1; all (B, A), and
    the value after the last column is 0."""
    advantage, after = torch.zeros_like(rewards), torch.zeros_like(values[:, 0])
    carried = torch.zeros_like(after)
    for a in reversed(range(rewards.shape[1])):
        carried = rewards[:, a] + after - values[:, a] + lam * carried
        advantage[:, a], after = carried, values[:, a]
    return advantage
