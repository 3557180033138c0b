"""The prompt in parts, each scored for itself: dCS by its phrases, DSG by questions with dependencies."""

import torch
from torch import Tensor

from lit_align.rewards.reward import Reward
from lit_align.steering.phrases import phrases


class ByPhrases(Reward):
    """Base of the rewards that take a prompt apart: by the data's column `phrases`, a list such as ["a red circle", "a
    blue square"] for each prompt, or, without it, by lists of words.

    Args:
        judge: scores an image for one phrase or question.
        objects: words that are objects.
        attributes: words that are attributes of the object right after them.
    """

    artefact = licence = scale = "its judge's"

    def __init__(self, judge: Reward, objects: list[str] | None = None, attributes: list[str] | None = None):
        super().__init__()
        self.judge, self.differentiable, self.masks = judge, False, judge.masks
        self.objects = [word.lower() for word in objects or []]
        self.attributes = [word.lower() for word in attributes or []]

    def found(self, prompt: str, given: list[str] | None) -> list[tuple[str, list[str]]]:
        """Object and attributes of each phrase, as words."""
        text = lambda span: prompt[slice(*span)]
        found = phrases(prompt, given, self.objects, self.attributes)
        if not found:
            raise ValueError(
                f"{self.name} finds no object in {prompt!r}: give the data a column phrases, or list the words in "
                "objects."
            )
        return [(text(phrase.object), [text(a) for a in phrase.attributes]) for phrase in found]

    def asked(self, images: Tensor, texts: list[list[str]]) -> list[Tensor]:
        """The judge's scores of each image for each of its texts."""
        owner = [i for i, own in enumerate(texts) for _ in own]
        scores = self.judge(images[owner], [text for own in texts for text in own])
        return list(scores.split([len(own) for own in texts]))


class DecomposedCLIPScore(ByPhrases):
    """dCS of OPT2I (arXiv 2403.17804, section 2.3): the mean of CLIPScore(image, phrase) over the prompt's noun
    phrases. The paper finds them by spaCy.

    Args:
        judge: CLIPScore.
        objects: see ByPhrases.
        attributes: see ByPhrases.
    """

    name = "dcs"
    blind_to = "how the phrases belong together: positions, who does what"

    def forward(self, images: Tensor, prompts: list[str], phrases: list | None = None) -> Tensor:
        parts = [self.found(*row) for row in zip(prompts, phrases or [None] * len(prompts), strict=True)]
        texts = [[" ".join(["a", *attributes, object_]) for object_, attributes in row] for row in parts]
        return torch.stack([scores.mean() for scores in self.asked(images, texts)])


class DSG(ByPhrases):
    """Davidsonian Scene Graph (Cho et al., ICLR 2024, arXiv 2310.18235): the share of yes/no questions about the image
    that are answered by yes; a question whose parent's answer is no counts as no.

    Questions come from the data's column `questions`, for each prompt a list of {"question", "parents": [index of an
    earlier question]} as a language model writes them (the released sets of questions have this content); without it, a
    question for each object and, dependent on it, one for each of its attributes.

    Args:
        judge: gives the probability of yes: VLMJudge or ServedVLMJudge with `answer: yes_no` and question: "{prompt}".
        objects: see ByPhrases.
        attributes: see ByPhrases.
        threshold: probability above which the answer is yes.
    """

    name, scale = "dsg", "share in [0, 1]"
    blind_to = "what is not asked; without a column of questions, positions and numbers"

    def __init__(
        self,
        judge: Reward,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        threshold: float = 0.5,
    ):
        super().__init__(judge, objects, attributes)
        self.threshold = threshold

    def questions(self, prompt: str, given: list[str] | None) -> list[dict]:
        rows = []
        for object_, attributes in self.found(prompt, given):
            parent = len(rows)
            rows.append({"question": f"Is there a {object_} in the image?", "parents": []})
            rows += [{"question": f"Is the {object_} {a}?", "parents": [parent]} for a in attributes]
        return rows

    def forward(
        self, images: Tensor, prompts: list[str], phrases: list | None = None, questions: list | None = None
    ) -> Tensor:
        if questions is None:
            rows = zip(prompts, phrases or [None] * len(prompts), strict=True)
            questions = [self.questions(*row) for row in rows]
        shares = []
        for row, scores in zip(questions, self.asked(images, [[q["question"] for q in row] for row in questions])):
            yes = []
            for i, (question, score) in enumerate(zip(row, scores.tolist())):
                if bad := [k for k in question["parents"] if not 0 <= k < i]:
                    raise ValueError(f"dsg: question {i} depends on question {bad[0]}, which is not before it.")
                unknown = score != score  # the judge masks
                yes.append(score if unknown else score > self.threshold and all(yes[k] for k in question["parents"]))
            shares.append(torch.tensor(yes, dtype=torch.float32).mean())
        return torch.stack(shares).to(images.device)


class Shortfall(Reward):
    """How far a reward is below a threshold, and 0 above it: weight min(0, r - threshold). Promptist (arXiv 2212.09611)
    takes 20 (cos - 0.28) of CLIP, which is CLIPScore with threshold 28 and weight 0.2, and PAE (arXiv 2404.04095)
    besides it PickScore with threshold 18.

    Args:
        reward: r.
        threshold: in r's unit.
        weight: factor.
        name: in logs.
    """

    artefact = licence = "its reward's"
    scale = "0 or less"
    blind_to = "differences above the threshold"

    def __init__(self, reward: Reward, threshold: float, weight: float = 1.0, name: str = "shortfall"):
        super().__init__()
        self.reward, self.threshold, self.weight, self.name = reward, threshold, weight, name
        self.differentiable, self.masks = reward.differentiable, reward.masks

    @property
    def columns(self) -> dict[str, bool]:
        return self.reward.columns

    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        return self.weight * (self.reward(images, prompts, **columns) - self.threshold).clamp(max=0)
