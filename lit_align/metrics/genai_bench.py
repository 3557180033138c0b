"""GenAI-Bench: VQAScore by skill."""

import json
from pathlib import Path

from torch import Tensor

from lit_align.metrics.benchmark import Benchmark
from lit_align.paths import fetch
from lit_align.rewards.reward import Reward
from lit_align.rewards.vqa_score import VQAScore


class GenAIBench(Benchmark):
    """GenAI-Bench (Li et al. 2024, arXiv 2406.13743): the mean VQAScore of one image for each prompt, and by skill
    (attribute, scene, spatial relation, ..., counting, comparison, negation; basic and advanced).

    Args:
        prompts: the published genai_image.json, whose keys number the prompts.
        skills: the published genai_skills.json, which lists the numbers of the prompts that need a skill.
        reward: the score (default: VQAScore with CLIP-FlanT5-XXL).
    """

    name, artefact = "genai_bench", f"genai_skills.json of `BaiqiL/GenAI-Bench-1600`; {VQAScore.artefact}"
    blind_to = VQAScore.blind_to

    def __init__(
        self,
        prompts: str = "BaiqiL/GenAI-Bench-1600/genai_image.json",
        skills: str = "BaiqiL/GenAI-Bench-1600/genai_skills.json",
        reward: Reward | None = None,
    ):
        super().__init__()
        self.reward = (reward or VQAScore()).requires_grad_(False)
        texts = {int(number): row["prompt"] for number, row in json.loads(Path(fetch(prompts)).read_text()).items()}
        self.skills: dict[str, set[str]] = {text: set() for text in texts.values()}
        for skill, numbers in json.loads(Path(fetch(skills)).read_text()).items():
            for number in numbers:
                self.skills[texts[int(number)]].add(skill)

    def judge(self, images: Tensor, prompts: list[str]) -> list[dict]:
        if unknown := [prompt for prompt in prompts if prompt not in self.skills]:
            raise ValueError(f"{unknown[0]!r} is no prompt of GenAI-Bench: sample from its genai_image.json.")
        found = zip(prompts, self.reward(images, prompts).tolist(), strict=True)
        by_skill = lambda prompt, score: [("", score), *((skill, score) for skill in sorted(self.skills[prompt]))]
        return [{"scores": by_skill(prompt, score), self.reward.name: score} for prompt, score in found]
