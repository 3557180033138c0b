"""The prompt family: a language model rewrites prompts, a frozen policy draws them, and rewards train the model."""

import copy
import os
from abc import abstractmethod

import torch
from torch import Tensor, nn

from lit_align.algorithms.online import Online, repeat_rows
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.rewards.reward import Reward
from lit_align.steering.dynamic_prompt import DynamicPrompt
from lit_align.steering.language_model import CausalLM
from lit_align.steering.writing import Written, predictions


class PromptPolicy(Online):
    """Base of the methods that train a language model by the images of what it writes, with PPO (arXiv 1707.06347). A
    method overrides `write`, `texts`, `targets` and `batch_loss`.

    A training step writes one text for each prompt of the batch, draws its images, scores them under the user's prompt,
    and makes `updates` optimizer steps on all texts. Writes the model to `<run>/writer`, which `Promptist` or `PAE`
    loads. The reference of the KL penalty is the model that training starts from. Logs `train/reward` (mean) and
    `train/prompt_kl`.

    Args:
        reward: of images, under the user's prompt.
        language_model: is trained, in full.
        baseline: a reward whose mean over the images of the user's own prompt is subtracted.
        images_per_prompt: images of a text.
        rollout: draws them (default: 20 steps, guidance 7.5).
        updates: optimizer steps on a batch.
        clip_range: of the likelihood ratio.
        value_clip: of the value's change.
        value_weight: coefficient of the value's loss.
        max_new_tokens: of a text.
        minibatch: texts, or images, in a forward.
    """

    feedback = ("prompt",)
    ranges = {"value_clip": "greater than 0", "value_weight": "0 or more"}

    def __init__(
        self,
        reward: Reward,
        language_model: CausalLM,
        baseline: Reward | None = None,
        images_per_prompt: int = 2,
        rollout: Sampler | None = None,
        updates: int = 4,
        clip_range: float = 0.2,
        value_clip: float = 0.2,
        value_weight: float = 1.0,
        max_new_tokens: int = 75,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(20, 7.5), updates=updates, **kwargs)
        self.policy.requires_grad_(False)
        self.reward = reward.eval().requires_grad_(False)
        self.baseline = baseline and baseline.eval().requires_grad_(False)
        self.language_model = language_model.requires_grad_(True)
        self.start = copy.deepcopy(language_model).requires_grad_(False)
        self.value = nn.Linear(language_model.model.get_input_embeddings().embedding_dim, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.images_per_prompt, self.clip_range, self.value_clip = images_per_prompt, clip_range, value_clip
        self.value_weight, self.max_new_tokens = value_weight, max_new_tokens
        self.draws = DynamicPrompt()

    @abstractmethod
    def write(self, prompts: list[str]) -> Written:
        """One continuation for each prompt."""

    @abstractmethod
    def texts(self, prompts: list[str], written: Written) -> list[str]:
        """What is drawn in place of the prompts."""

    @abstractmethod
    def targets(self, old: dict, start: dict, made: Tensor, reward: Tensor) -> dict[str, Tensor]:
        """What `batch_loss` learns from, rows first: of `evaluate` under the model that wrote and under the one that
        training started from, the tokens made (B, A), and the rewards (B,)."""

    def evaluate(self, lm: CausalLM, written: Written) -> dict[str, Tensor]:
        """Log probabilities (B, A) of what was chosen, by what it is, and the "value" (B, A) before each choice."""
        hidden, _, token = predictions(lm, written)
        return {"token": token, "value": self.value(hidden).squeeze(-1)}

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        prompts = batch["prompt"]
        written = self.write(prompts)
        each = self.score(batch, self.texts(prompts, written), self.reward)
        reward = self.mean(self.log_reward(each, repeat_rows(batch, self.images_per_prompt)["prompt"]))
        if self.baseline:
            reward = reward - self.mean(self.score(batch, prompts, self.baseline))
        old, start = (self.in_parts(lm, written) for lm in (self.language_model, self.start))
        kl = ((old["token"] - start["token"]) * written.made).sum() / written.made.sum()
        self.log_mean("train/prompt_kl", kl, len(prompts))
        rows = {"ids": written.ids, "mask": written.mask, "made": written.made, "choices": written.choices}
        learnt = self.targets(old, start, written.made, reward.to(written.ids.device))
        return rows | {"old": old, "prompt": prompts, "learnt": learnt}

    def in_parts(self, lm: CausalLM, written: Written) -> dict[str, Tensor]:
        parts = torch.arange(len(written.ids)).split(self.minibatch)
        found = [self.evaluate(lm, written.part(rows)) for rows in parts]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def score(self, batch: dict, texts: list[str], reward: Reward) -> Tensor:
        """Rewards (B k,) of the k images of each text, under the prompts of the batch."""
        rows, k = repeat_rows(batch, self.images_per_prompt), self.images_per_prompt
        rows["columns"] = rows["columns"] | {"dynamic": [text for text in texts for _ in range(k)]}
        latents = []
        for part in torch.arange(len(rows["prompt"])).split(self.minibatch):
            some = select_rows(rows, part.tolist())
            latents.append(self.rollout(self.policy, some["prompt"], columns=some["columns"], hooks=[self.draws]).x)
        return self.judge(reward, torch.cat(latents), rows, self.minibatch)

    def mean(self, each: Tensor) -> Tensor:
        """(B,) of the rewards (B k,) of k images."""
        return each.view(-1, self.images_per_prompt).mean(1)

    def optimizer_steps(self, collected: dict):
        """`updates` steps, each on all texts, `minibatch` at a time."""
        n = len(collected["prompt"])
        for _ in range(self.updates):
            parts = torch.randperm(n).split(self.minibatch)
            yield [select_rows(collected, part.tolist()) | {"share": len(part) / n} for part in parts]

    def now(self, m: dict) -> dict[str, Tensor]:
        """`evaluate` of a minibatch under the model as it is."""
        return self.evaluate(self.language_model, Written(m["ids"], m["mask"], m["made"], m["choices"]))

    def value_loss(self, value: Tensor, old: Tensor, target: Tensor) -> Tensor:
        """max of the squared errors of a value and of one that is clipped around the old one."""
        clipped = old + (value - old).clamp(-self.value_clip, self.value_clip)
        return torch.maximum((value - target).square(), (clipped - target).square())

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.language_model.save(os.path.join(self.trainer.default_root_dir, "writer"))
