"""PAE's second stage: PPO of words, weights and windows."""

from torch import Tensor

from lit_align.algorithms.parts.clipping import clipped_surrogate
from lit_align.algorithms.prompt.prompt import PromptPolicy
from lit_align.steering.pae import DynamicLM
from lit_align.steering.writing import chosen, predictions

HEADS = ("token", "weight", "window")


class PAEPPO(PromptPolicy):
    """Mo et al., CVPR 2024 (arXiv 2404.04095, section 3.3): three heads, each with the advantage

        A_h = r - beta KL_h - V,    KL_h the mean over tokens of exp(d) - 1 - d, d = log p_h - log p_h,start,

    and one value of the prompt; the actor's loss is the sum of the three clipped surrogates. (The released code takes
    the likelihoods of weight 1 and window 0-1 in place of those that were drawn; here they are those drawn. Its critic
    is a second language model; here the value is a head on the one that is trained.)

    The paper's reward is AestheticScore plus Shortfall of CLIPScore (threshold 28, weight 0.2) and of PickScore
    (threshold 18). `PAE` draws with the trained model.

    Args:
        language_model: a DynamicLM.
        kl_weight: beta.
        top_k: tokens that are drawn from.
        value_clip: see PromptPolicy.
        updates: optimizer steps on a batch.
        max_new_tokens: of a continuation.
    """

    def __init__(
        self,
        language_model: DynamicLM,
        kl_weight: float = 0.02,
        top_k: int = 50,
        value_clip: float = 0.4,
        updates: int = 1,
        max_new_tokens: int = 77,
        **kwargs,
    ):
        more = {"value_clip": value_clip, "updates": updates, "max_new_tokens": max_new_tokens}
        super().__init__(language_model=language_model, **more, **kwargs)
        self.kl_weight, self.top_k = kl_weight, top_k

    def write(self, prompts):
        return self.language_model.write(prompts, self.max_new_tokens, top_k=self.top_k)

    def texts(self, prompts, written):
        return self.language_model.dynamic(prompts, written)

    def evaluate(self, lm, written):
        hidden, _, token = predictions(lm, written)
        found = {name: chosen(head(hidden), written.choices[name]) for name, head in lm.heads.items()}
        return found | {"token": token, "value": self.value(hidden[:, 0]).expand(token.shape)}

    def targets(self, old, start, made, reward):
        value = old["value"][:, 0]
        penalised = {h: reward - self.kl_weight * self.kl(old[h] - start[h], made) for h in HEADS}
        return {h: penalised[h] - value for h in HEADS} | {"returns": penalised["token"]}

    @staticmethod
    def kl(log_ratio: Tensor, made: Tensor) -> Tensor:
        """Mean over a text's tokens of exp(d) - 1 - d (Schulman's k3), (B,)."""
        return ((log_ratio.exp() - 1 - log_ratio) * made).sum(1) / made.sum(1)

    def batch_loss(self, m):
        now, made, actor = self.now(m), m["made"], 0.0
        for h in HEADS:
            advantage = m["learnt"][h][:, None].expand(made.shape)
            actor = actor + clipped_surrogate((now[h] - m["old"][h]).exp(), advantage, self.clip_range)[made].mean()
        critic = self.value_loss(now["value"][:, 0], m["old"]["value"][:, 0], m["learnt"]["returns"]).mean()
        return (actor + self.value_weight * critic) * m["share"]
