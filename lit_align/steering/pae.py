"""PAE: a language model appends words to the prompt, each with a weight and a window of the run."""

import os

import torch
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.steering.dynamic_prompt import DynamicPrompt
from lit_align.steering.language_model import CausalLM
from lit_align.steering.writing import Written, write

WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5)
WINDOWS = ("0-0.5", "0-1", "0.5-1")
CHOICES = {"weight": WEIGHTS, "window": WINDOWS}
START = {"weight": (0.0013, 0.157, 0.6834, 0.157, 0.0013), "window": (0.159, 0.682, 0.159)}


class DynamicLM(CausalLM):
    """A causal language model that chooses a weight and a window with each token that it writes: two further heads on
    its last hidden state. `PAEPPO` trains it. New heads have the probabilities of a rounded normal around "as it is"
    (standard deviation 0.5), on which the paper's first stage trains them.

    Args:
        pretrained: hub id or folder of a language model, or what `PAEPPO` wrote; "tiny" as in CausalLM.
        tokenizer: hub id or folder, if it is elsewhere.
    """

    def __init__(self, pretrained: str, tokenizer: str | None = None):
        super().__init__(pretrained, tokenizer, chat=False)
        width = self.model.get_input_embeddings().embedding_dim
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in CHOICES.items()})
        for name, head in self.heads.items():
            nn.init.zeros_(head.weight)
            head.bias.data = torch.tensor(START[name]).log()
        self.heads.requires_grad_(False)
        file = os.path.join(find(pretrained), "heads.safetensors")
        if os.path.isfile(file):
            from safetensors.torch import load_file

            self.heads.load_state_dict(load_file(file))

    def save(self, folder: str) -> None:
        from safetensors.torch import save_file

        super().save(folder)
        save_file(self.heads.state_dict(), os.path.join(folder, "heads.safetensors"))

    @torch.no_grad()
    def write(self, prompts: list[str], max_new_tokens: int, temperature: float = 1.0, top_k: int = 50) -> Written:
        """Continuations, with "weight" and "window", indices into WEIGHTS and WINDOWS; of temperature 0, the likeliest
        choices."""

        def pick(logits: Tensor, k: int = 0) -> Tensor:
            if not temperature:
                return logits.argmax(-1)
            if k and k < logits.shape[-1]:
                logits = logits.masked_fill(logits < logits.topk(k, -1).values[:, -1:], -torch.inf)
            return torch.multinomial((logits / temperature).softmax(-1), 1).squeeze(-1)

        def choose(logits: Tensor, hidden: Tensor):
            return pick(logits, top_k), {name: pick(head(hidden)) for name, head in self.heads.items()}

        return write(self, prompts, choose, max_new_tokens)

    def dynamic(self, prompts: list[str], written: Written) -> list[str]:
        """Dynamic prompts: each prompt, followed by its continuation with brackets."""
        return [prompt + self.bracketed(written, p) for p, prompt in enumerate(prompts)]

    def bracketed(self, written: Written, p: int) -> str:
        """The p-th continuation. What lies between two commas or full stops is one bracket, with the weight and the
        window that most of its tokens have, the first of those that are equal; without a bracket if these are 1 and
        0-1."""
        text, group = "", []
        for a in written.made[p].nonzero().flatten().tolist():
            word = self.spell(written.tokens[p, a : a + 1])[0]
            if word.strip() in (",", "."):
                text, group = text + self.bracket(written, p, group) + word, []
            else:
                group.append(a)
        return text + self.bracket(written, p, group)

    def bracket(self, written: Written, p: int, group: list[int]) -> str:
        words = self.spell(written.tokens[p, group][None])[0] if group else ""
        inside = words.strip()
        if not inside or set(inside) & set("[]:"):
            return words
        common = {name: int(written.choices[name][p, group].bincount().argmax()) for name in CHOICES}
        weight, window = WEIGHTS[common["weight"]], WINDOWS[common["window"]]
        space = words[: len(words) - len(words.lstrip())]
        return words if (weight, window) == (1.0, "0-1") else f"{space}[{inside}:{window}:{weight:g}]"


class PAE(DynamicPrompt):
    """Mo et al., CVPR 2024 (arXiv 2404.04095): the likeliest continuation of the prompt, with the weights and windows
    that a policy chooses; see DynamicPrompt for what they do. No network evaluation is added.

    Args:
        language_model: the policy, trained by `PAEPPO`.
        max_new_tokens: of the continuation.
        temperature: above 0, choices are drawn at random.
    """

    def __init__(self, language_model: DynamicLM, max_new_tokens: int = 77, temperature: float = 0.0):
        self.language_model, self.max_new_tokens, self.temperature = language_model, max_new_tokens, temperature

    def rewrite(self, texts, columns):
        unique = list(dict.fromkeys(texts))
        written = self.language_model.write(unique, self.max_new_tokens, self.temperature)
        new = dict(zip(unique, self.language_model.dynamic(unique, written)))
        return [new[text] for text in texts]
