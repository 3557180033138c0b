"""Rewards-in-Context: training prompts contain the image's scores, so that sampling can ask for a score."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.rewards.multi_reward import MultiReward, mean_and_std, moments
from lit_align.rewards.reward import Reward


class RewardsInContext(WeightedLikelihood):
    """RiC (Yang et al. 2024, arXiv 2402.10207): the denoising loss given (c, r_1 .. r_R), the rewards standardised and
    written into the prompt. Two stages, two runs:

    - offline (`online: false`): on scored images or lists (a batch with `image` or `images` and `scores`, in the order
      of `conditions`), or on own samples of the plain prompts. Mean and std are over all rewards so far.
    - online (`init_from:` the first run's checkpoint): on own samples of prompts with target scores, relabelled with
      the scores they got, by the first run's statistics; and on the scored lists if the data has them, as in the paper.
      (The paper also drops samples far from the Pareto front; here all are kept, each with its own scores.)

    Validation, test and predict sample with the target scores `ask`; the baseline of `test` gets the plain prompt.

    Args:
        conditions: name -> reward.
        ask: name -> target score, in standard deviations above the mean (default: 1 for each).
        template: text appended to the prompt for each reward; `{name}` and `{value}`, format specifications allowed.
        words: replace the numbers, for text encoders that cannot read them: one word per standard deviation, the
            middle one for the mean.
        online: sample the training images with target scores.
    """

    takes_several_rewards = True

    def __init__(
        self,
        conditions: dict[str, Reward],
        ask: dict[str, float] | None = None,
        template: str = " <{name}> {value:z.1f}",
        words: list[str] | None = None,
        online: bool = False,
        **kwargs,
    ):
        super().__init__(reward=MultiReward(conditions), **kwargs)
        self.ask = ask or dict.fromkeys(conditions, 1.0)
        self.template, self.words, self.online = template, words, online
        self.moments: Tensor | float = 0.0  # (3, R) count, sum, sum of squares
        if self.ask.keys() != conditions.keys():
            raise ValueError(f"ask names {', '.join(self.ask)}; conditions are {', '.join(conditions)}: name the same.")

    def initialise(self) -> None:
        super().initialise()
        if self.online and not torch.is_tensor(self.moments):
            raise ValueError(
                "online: true needs the statistics of the offline stage: give its checkpoint as init_from."
            )

    def written(self, prompt: str, values: list[float]) -> str:
        """The prompt with the rewards' standardised values appended."""
        if self.words:
            last = len(self.words) - 1
            values = [self.words[round(min(max(value + last / 2, 0), last))] for value in values]
        pairs = zip(self.reward.parts, values, strict=True)
        return prompt + "".join(self.template.format(name=name, value=value) for name, value in pairs)

    def target_prompts(self, prompts: list[str]) -> list[str]:
        return [self.written(p, [self.ask[name] for name in self.reward.parts]) for p in prompts]

    def weights(self, reward: Tensor) -> Tensor:
        return torch.ones_like(reward[..., 0])

    def standardised(self, reward: Tensor) -> Tensor:
        """Rewards (B, K, R) minus their mean, over their std; offline they are added to the statistics first."""
        if not self.online:
            self.moments = self.moments + moments(self.gathered(reward).flatten(0, 1).cpu())
        mean, std = mean_and_std(self.moments)
        return (reward.cpu() - mean) / (std + 1e-6)

    def collect(self, batch: dict) -> dict:
        lists, texts, prompts = [], [], batch["prompt"]  # lists: latents (B, K, C, h, w), rewards (B, K, R)
        if "scores" in batch:
            key = "images" if batch["scores"].ndim == 3 else "image"
            x_0, scores = self.latents(batch, key), batch["scores"].float()
            lists.append((x_0, scores) if key == "images" else (x_0.unsqueeze(1), scores.unsqueeze(1)))
        if self.online or not lists:
            lists.append(self.sample_and_judge(batch, self.target_prompts(prompts) if self.online else None))
        for _, reward in lists:
            texts += [self.written(p, v) for p, rows in zip(prompts, self.standardised(reward)) for v in rows.tolist()]
        latents = torch.cat([x.flatten(0, 1) for x, _ in lists])
        return {"prompt": texts, "image_latents": latents, "weight": torch.ones(len(texts), device=latents.device)}

    def draw(self, batch: dict, sampler: Sampler | None = None) -> State:
        conditioned = not self.policy.in_reference
        return super().draw(batch | {"prompt": self.target_prompts(batch["prompt"])} if conditioned else batch, sampler)

    def get_extra_state(self) -> tuple:
        return (self.moments,)  # one leaf of a sharded checkpoint

    def set_extra_state(self, state: tuple) -> None:
        (self.moments,) = state
