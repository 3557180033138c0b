"""OPT2I: a language model proposes prompts by the scores of those before."""

import re

import torch
from torch import Tensor

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, derived_seed, select_rows
from lit_align.rewards.reward import Reward
from lit_align.steering.language_model import LanguageModel
from lit_align.steering.outer_sampler import OuterSampler

INSTRUCTION = """\
You write prompts for a text-to-image model. Its images do not show all that this user asked for:
{prompt}

Earlier versions, each after the score of its images; a higher score means that the images show more of the request:
{history}

Write {n} new versions of the prompt whose images would score higher than all of these. Keep what the user asked for,
say what was missed more clearly or earlier, and make the {n} versions differ. Answer with a numbered list of prompts
alone."""


class OPT2I(OuterSampler):
    """Manas et al., TMLR 2024 (arXiv 2403.17804): optimisation by prompting. In every iteration a language model reads
    the user's prompt and the best prompts so far with their scores, worst first, and proposes new ones; a prompt's
    score is the mean reward of its images under the user's prompt. Returns the first image of the best prompt; the
    first image of the user's own is that of plain sampling.

    All prompts are drawn from the same noises. (No official code; iterations, images and temperature are unverified.)
    The paper's rewards are DecomposedCLIPScore and DSG.

    Args:
        reward: scores images under the user's prompt.
        language_model: proposes.
        iterations: of proposals, at most; with `max_nfe`, as many as it allows.
        candidates: new prompts in an iteration.
        images: of each prompt.
        history: prompts that the language model is shown.
        answers: answers of the language model in an iteration, each of which may propose several prompts.
        temperature: of the language model.
        max_new_tokens: of an answer.
        goal: a score at which the search for a prompt ends; None: none.
        instruction: to the language model; {prompt}, {history} and {n} in it are filled in (default: our own words). A
            model that was trained to rewrite is asked by "{prompt} Rephrase:".
        sampler: draws the images (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards and backwards that a prompt of the user may take.
    """

    def __init__(
        self,
        reward: Reward,
        language_model: LanguageModel,
        iterations: int = 30,
        candidates: int = 5,
        images: int = 4,
        history: int = 5,
        answers: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 512,
        goal: float | None = None,
        instruction: str | None = None,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        counts = {"candidates": candidates, "images": images, "history": history, "answers": answers}
        if small := [name for name, n in counts.items() if n < 1]:
            raise ValueError(f"OPT2I: {small[0]} is {counts[small[0]]}; give 1 or more.")
        self.language_model, self.iterations, self.candidates = language_model, iterations, candidates
        self.images, self.history, self.answers, self.goal = images, history, answers, goal
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.instruction = instruction or INSTRUCTION

    def nfe(self, first=0, last=None, hooks=()):
        return self.images * self.sampler.nfe(hooks=hooks)

    def search(self, policy, start, hooks, budget):
        if start.texts is None:
            raise ValueError("OPT2I rewrites prompts, and was given conditioning alone.")
        rows = torch.arange(len(start.x))
        noises = [self.start(start, k).x for k in range(self.images)]
        x, score = self.draw(policy, start, rows, start.texts, noises, hooks)
        texts, known = list(start.texts), [{text: s} for text, s in zip(start.texts, score.tolist())]
        an_iteration = self.candidates * self.nfe(hooks=hooks)
        for i in range(self.iterations):
            open_rows = [r for r in rows.tolist() if self.goal is None or score[r] < self.goal]
            if not open_rows or not budget.allows(an_iteration):
                break
            proposed = self.propose(start, open_rows, known, i)
            for c in range(self.candidates):
                some = [r for r in open_rows if c < len(proposed[r])]
                if not some:
                    break
                tried, index = [proposed[r][c] for r in some], torch.tensor(some)
                new_x, new_score = self.draw(policy, start, index, tried, noises, hooks)
                better = new_score > score[index]
                x[index] = torch.where(append_dims(better, new_x), new_x, x[index])
                score[index] = torch.where(better, new_score, score[index])
                for r, text, s, wins in zip(some, tried, new_score.tolist(), better.tolist()):
                    known[r][text], texts[r] = s, text if wins else texts[r]
        done = self.result(start, x, score)
        done.texts = texts
        return done

    def draw(self, policy, start: State, rows: Tensor, texts: list[str], noises: list[Tensor], hooks) -> tuple:
        """The first image's latents of one text for each of the rows, and the mean reward of its images (N,)."""
        cond = self.encode(policy, texts, hooks, select_rows(start.columns, rows.tolist()))
        rewards, first = [], None
        for k, noise in enumerate(noises):
            state = self.start(start, k)
            state.x = noise
            state.reindex(rows)
            state.cond, state.texts = cond, texts
            state = self.sampler.run(policy, state, hooks)
            rewards.append(self.score(policy, state))
            first = state.x if first is None else first
        return first, torch.stack(rewards).mean(0)

    def propose(self, start: State, rows: list[int], known: list[dict[str, float]], i: int) -> dict[int, list[str]]:
        """New prompts for each of the rows, by the language model, in iteration i."""
        asked = [self.question(start.texts[r], known[r]) for r in rows]
        streams, seeds = start.generators, None
        if streams is not None:
            seeds = [derived_seed(streams[r].initial_seed(), i + 1, 99) % 2**31 for r in rows]
        how = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        answers = self.language_model.answer(asked, self.answers, **how, seeds=seeds)
        return {r: self.read(texts, known[r]) for r, texts in zip(rows, answers, strict=True)}

    def question(self, prompt: str, known: dict[str, float]) -> str:
        """What the language model is asked."""
        best = sorted(known.items(), key=lambda item: item[1])[-self.history :]
        lines = "\n".join(f"{score:.3f}: {text}" for text, score in best)
        filled = self.instruction.replace("{n}", str(self.candidates)).replace("{history}", lines)
        return filled.replace("{prompt}", prompt)

    def read(self, answers: list[str], known: dict[str, float]) -> list[str]:
        """The new prompts in answers: the items of a list, or the whole answer where it is none."""
        found = []
        for answer in answers:
            items = re.findall(r"(?m)^\s*(?:\d+[.)]|[-*])\s+(.+)$", answer) or [answer]
            found += [" ".join(item.split()).strip("\"'` ") for item in items]
        return [text for text in dict.fromkeys(found) if text and text not in known][: self.candidates]
