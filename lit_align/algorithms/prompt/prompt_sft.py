"""Supervised training of a prompt writer: the first stage of Promptist and PAE."""

import os

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.policies.adapters import Frozen
from lit_align.policies.policy import Policy
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.steering.language_model import CausalLM
from lit_align.steering.writing import Written, predictions


class PromptSFT(Algorithm):
    """-log p(target | prompt) of a language model, mean over the target's tokens and its end (Promptist, arXiv
    2212.09611, section 3.1; PAE, arXiv 2404.04095, section 3.2). The data's column `target` holds what the model is to
    write after the prompt and the separator.

    The policy is unused. Writes the model to `<run>/writer`, which `Promptist`, `PromptistPPO`, `PAEPPO` and `OPT2I`
    load.

    Args:
        language_model: is trained, in full.
        separator: after the prompt; "" to continue the prompt itself (PAE).
        policy: unused; a tiny one by default.
    """

    feedback = ("prompt",)

    def __init__(
        self, language_model: CausalLM, separator: str = " Rephrase:", policy: Policy | None = None, **kwargs
    ):
        super().__init__(policy=policy or StableDiffusion("tiny", Frozen()), **kwargs)
        self.policy.requires_grad_(False)
        self.language_model, self.separator = language_model.requires_grad_(True), separator

    def batch_loss(self, batch: dict) -> Tensor:
        if "target" not in batch["columns"]:
            raise ValueError("PromptSFT learns to write the column target: give it to the file of data.path.")
        asked = [prompt.strip() + self.separator for prompt in batch["prompt"]]
        written = self.written(asked, batch["columns"]["target"])
        _, _, log_prob = predictions(self.language_model, written)
        return -log_prob[written.made].mean()

    def written(self, prompts: list[str], targets: list[str]) -> Written:
        """Prompts with the targets as continuations, each with its end of text."""
        lm, words = self.language_model, self.language_model.tokenizer
        ids, mask = lm.read(prompts)
        texts = [f" {text.strip()}" if self.separator else text for text in targets]
        ends = [words(text, add_special_tokens=False).input_ids + [words.eos_token_id] for text in texts]
        longest = max(map(len, ends))
        tokens = torch.tensor([end + [words.pad_token_id] * (longest - len(end)) for end in ends], device=ids.device)
        made = torch.tensor([[a < len(end) for a in range(longest)] for end in ends], device=ids.device)
        return Written(torch.cat([ids, tokens], 1), torch.cat([mask, made.to(mask)], 1), made, {})

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.language_model.save(os.path.join(self.trainer.default_root_dir, "writer"))
