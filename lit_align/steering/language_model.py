"""Language models that write prompts: one of transformers in this process, or one behind a server."""

import json
import os
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.remote import HTTPClient, Request


class LanguageModel(nn.Module):
    """Base of the models that answer a text with texts."""

    @abstractmethod
    def answer(
        self,
        texts: list[str],
        n: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 75,
        beams: int = 1,
        length_penalty: float = 1.0,
        seeds: list[int] | None = None,
    ) -> list[list[str]]:
        """n answers to each of the texts, without the text.

        Args:
            texts: what is continued, or said to a chat model.
            n: answers to a text.
            temperature: 0 takes the likeliest token each time.
            max_new_tokens: of an answer.
            beams: with more than 1, beam search in place of sampling.
            length_penalty: the exponent of the length by which beam search divides the log-probability of an answer.
            seeds: of the texts, one each.
        """


class CausalLM(LanguageModel):
    """A causal language model of transformers, from safetensors, or from PyTorch's format read as tensors only. It
    continues the text, or answers it as a user's turn if its tokenizer has a chat template.

    Args:
        pretrained: hub id or folder; "tiny" for random weights of a tiny GPT-2 whose tokens are bytes.
        tokenizer: hub id or folder, if it is elsewhere (Promptist's is that of gpt2).
        dtype: of the weights.
        chat: false never uses the chat template.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        chat: bool = True,
    ):
        super().__init__()
        if pretrained == "tiny":
            self.model, self.tokenizer = tiny()
        else:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self.model = AutoModelForCausalLM.from_pretrained(find(pretrained), dtype=getattr(torch, dtype))
            self.tokenizer = AutoTokenizer.from_pretrained(find(tokenizer or pretrained))
        self.model.eval().requires_grad_(False)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.chats = chat and self.tokenizer.chat_template is not None

    def read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L), padded on the left, and their mask."""
        if self.chats:
            turn = lambda text: [{"role": "user", "content": text}]
            said = self.tokenizer.apply_chat_template
            texts = [said(turn(text), tokenize=False, add_generation_prompt=True) for text in texts]
        words = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=not self.chats)
        return words.input_ids.to(self.model.device), words.attention_mask.to(self.model.device)

    def spell(self, ids: Tensor) -> list[str]:
        """The texts of tokens (B, L), without special ones."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def answer(self, texts, n=1, temperature=1.0, max_new_tokens=75, beams=1, length_penalty=1.0, seeds=None):
        if seeds is not None:
            options = {"max_new_tokens": max_new_tokens, "beams": beams, "length_penalty": length_penalty}
            with torch.random.fork_rng():
                return [self._seeded(seed, text, n, temperature, **options) for seed, text in zip(seeds, texts)]
        ids, mask = self.read(texts)
        how = {"num_beams": beams, "length_penalty": length_penalty} if beams > 1 else {}
        how |= {"do_sample": True, "temperature": temperature, "top_k": 0} if beams == 1 and temperature else {}
        how = how if how else {"do_sample": False}
        words = self.tokenizer
        how |= {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "num_return_sequences": n}
        made = self.model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **how)
        said = self.spell(made[:, ids.shape[1] :])
        return [said[i : i + n] for i in range(0, len(said), n)]

    def _seeded(self, seed: int, text: str, n: int, temperature: float, **options) -> list[str]:
        torch.manual_seed(seed)
        return self.answer([text], n, temperature, **options)[0]

    def train(self, mode: bool = True) -> "CausalLM":
        """Stays in eval mode: without dropout, what is trained has the likelihood that it was written with."""
        return super().train(False)

    def save(self, folder: str) -> None:
        """Writes weights (safetensors, as trained) and tokenizer, as `from_pretrained` reads them."""
        os.makedirs(folder, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class ServedLM(LanguageModel):
    """A chat model behind an OpenAI-compatible server, by POST /v1/chat/completions. Failed requests are repeated, as
    those of served rewards are; the last failure stops the run.

    Args:
        model: as the server calls it.
        urls: servers of that model, which are asked in turn: http://127.0.0.1:8000.
        concurrency: requests at once.
        timeout: seconds until an attempt has failed.
        retries: attempts after the first.
        backoff: seconds before the first retry; doubled at each further one.
        token_env: environment variable with the key.
    """

    def __init__(
        self,
        model: str,
        urls: list[str],
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        token_env: str = "OPENAI_API_KEY",
    ):
        super().__init__()
        self.model, self.concurrency = model, concurrency
        self.client = HTTPClient(urls, timeout, retries, backoff, token_env)

    def answer(self, texts, n=1, temperature=1.0, max_new_tokens=75, beams=1, length_penalty=1.0, seeds=None):
        if beams > 1:
            raise ValueError(f"beams is {beams}, and a served language model has no beam search: set beams to 1.")
        options = {"model": self.model, "n": n, "temperature": temperature, "max_tokens": max_new_tokens}
        turns = [{"messages": [{"role": "user", "content": text}]} for text in texts]
        turns = [turn | ({"seed": seeds[i]} if seeds else {}) for i, turn in enumerate(turns)]
        requests = [Request("/v1/chat/completions", json.dumps(options | turn).encode()) for turn in turns]
        return self.client.map(lambda request, ask: ask(request, lambda b: said(b, n)), requests, self.concurrency)


def said(body: bytes, n: int) -> list[str]:
    """The n texts of a chat completion. Raises ValueError if it is none."""
    try:
        texts = [choice["message"]["content"] for choice in json.loads(body)["choices"]]
    except (KeyError, TypeError) as error:
        raise ValueError("the answer is not a chat completion") from error
    if len(texts) != n or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the answer must hold {n} texts, and it holds {str(texts)[:60]}")
    return texts


def tiny():
    """A GPT-2 of two layers with random weights, the same every time, and its tokenizer: a token per byte."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from lit_align.policies.tiny_transformers import _byte_tokenizer
    from lit_align.rewards.tiny import seeded

    words = _byte_tokenizer(256)
    words.chat_template = None
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = GPT2Config(vocab_size=len(words), n_positions=256, n_embd=16, n_layer=2, n_head=2, **ends)
    return seeded(lambda: GPT2LMHeadModel(config)), words
