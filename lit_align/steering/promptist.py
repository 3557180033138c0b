"""Promptist: a language model that was trained against image rewards rewrites the prompt."""

from lit_align.diffusion.hook import Hook
from lit_align.steering.language_model import LanguageModel


class Promptist(Hook):
    """Hao et al., NeurIPS 2023 (arXiv 2212.09611): the likeliest continuation of "<prompt> Rephrase:" is drawn in place
    of the prompt. `PromptSFT` and `PromptistPPO` train the model; the published one is `microsoft/Promptist`, with the
    tokenizer of gpt2. An empty continuation leaves the prompt as it is. No network evaluation is added.

    Args:
        language_model: writes.
        separator: after the prompt.
        beams: of beam search; with 1 the likeliest token is taken each time.
        length_penalty: of beam search; below 0, shorter texts are preferred.
        max_new_tokens: of the new prompt.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        separator: str = " Rephrase:",
        beams: int = 8,
        length_penalty: float = -1.0,
        max_new_tokens: int = 75,
    ):
        self.language_model, self.separator = language_model, separator
        self.how = {"beams": beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}

    def rewrite(self, texts, columns):
        unique = list(dict.fromkeys(texts))
        asked = [text.strip() + self.separator for text in unique]
        answers = self.language_model.answer(asked, temperature=0.0, **self.how)
        written = {text: answer.strip() or text for text, (answer,) in zip(unique, answers, strict=True)}
        return [written[text] for text in texts]
