"""Texts that a language model writes token by token, and their likelihood, for methods that train it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.steering.language_model import CausalLM


class Written(NamedTuple):
    """B continuations of at most A tokens; prompts of at most L."""

    ids: Tensor  # (B, L + A): prompts padded on the left, continuations on the right
    mask: Tensor  # (B, L + A), 1 at tokens
    made: Tensor  # (B, A), True at the continuations' tokens, the one that ends them included
    choices: dict[str, Tensor]  # further choices that were made with each token, (B, A) each

    @property
    def tokens(self) -> Tensor:
        """The continuations' tokens (B, A)."""
        return self.ids[:, -self.made.shape[1] :]

    def part(self, rows: Tensor) -> "Written":
        return Written(self.ids[rows], self.mask[rows], self.made[rows], {k: v[rows] for k, v in self.choices.items()})


Choose = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def write(lm: CausalLM, prompts: list[str], choose: Choose, max_new_tokens: int) -> Written:
    """Continues the prompts until each has ended. `choose` takes the logits (B, V) and the hidden states (B, D) and
    gives the tokens (B,) and further choices."""
    ids, mask = lm.read(prompts)
    going, made, choices = torch.ones(len(ids), dtype=torch.bool, device=ids.device), [], []
    for _ in range(max_new_tokens):
        hidden, logits = states(lm, ids, mask, 1)
        token, more = choose(logits[:, 0], hidden[:, 0])
        token = torch.where(going, token, lm.tokenizer.pad_token_id)
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, going[:, None].to(mask)], 1)
        made.append(going)
        choices.append(more)
        going = going & (token != lm.tokenizer.eos_token_id)
        if not going.any():
            break
    return Written(ids, mask, torch.stack(made, 1), {k: torch.stack([c[k] for c in choices], 1) for k in choices[0]})


def diverse_beams(lm: CausalLM, prompts: list[str], groups: int, penalty: float, max_new_tokens: int) -> Written:
    """Diverse beam search (Vijayakumar et al. 2018, arXiv 1610.02424) with one beam to a group: each group takes the
    likeliest token after `penalty` for every group of its prompt before it that takes the same token at this place. A
    group ends with its first end of text. Rows: a a b b."""

    def choose(logits: Tensor, hidden: Tensor):
        scores = logits.log_softmax(1).unflatten(0, (-1, groups))  # (B, groups, V)
        taken, tokens = torch.zeros_like(scores[:, 0]), []
        for g in range(groups):
            tokens.append((scores[:, g] - penalty * taken).argmax(1))
            taken.scatter_add_(1, tokens[-1][:, None], torch.ones_like(taken[:, :1]))
        return torch.stack(tokens, 1).flatten(), {}

    return write(lm, [prompt for prompt in prompts for _ in range(groups)], choose, max_new_tokens)


def states(lm: CausalLM, ids: Tensor, mask: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """Hidden states (B, last, D) and logits (B, last, V), float32, at the last positions."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = lm.model(ids, attention_mask=mask, position_ids=places, output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][:, -last:].float(), out.logits[:, -last:].float()


def predictions(lm: CausalLM, written: Written) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (B, A, D) and logits (B, A, V) that each token of the continuations was chosen by, and the log
    probabilities (B, A) of these tokens."""
    n = written.made.shape[1]
    hidden, logits = states(lm, written.ids[:, :-1], written.mask[:, :-1], n)
    return hidden, logits, chosen(logits, written.tokens)


def chosen(logits: Tensor, choice: Tensor) -> Tensor:
    """log p of the choices (B, A) under logits (B, A, V)."""
    return logits.log_softmax(-1).gather(-1, choice[..., None]).squeeze(-1)
