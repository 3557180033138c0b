"""DPG-Bench."""

from torch import Tensor

from lit_align.data.tables import read_table
from lit_align.metrics.benchmark import Benchmark
from lit_align.paths import fetch
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm_judge import VLMJudge

ASK = "{prompt} Answer with yes or no."
QUESTIONS = (
    "https://raw.githubusercontent.com/TencentQQGYLab/ELLA/025f650e9b36b9603d606042635d98da09e870de/dpg_bench/"
    "dpg_bench.csv"
)


def gated(answers: dict[int, bool], parents: dict[int, list[int]]) -> dict[int, bool]:
    """Answers of which one counts as no if one of its parents does, in the order of the file: 0 is no parent."""
    counted = dict(answers)
    for number, above in parents.items():
        if not all(counted[parent] for parent in above if parent):
            counted[number] = False
    return counted


class DPGBench(Benchmark):
    """DPG-Bench (Hu et al. 2024, arXiv 2403.05135): 100 times the share of questions about a dense prompt that are
    answered with yes, where a question counts as no if a question that it depends on does; mean over images.

    `dpg/<category>` counts the answers as they are, by the broad category of the question. Prompts are the folder of
    .txt files, whose names (the column `file_name`) find the questions. Four images of a prompt are measured, each by
    itself where the released script takes a grid. That script also leaves out the first question of the file; here it
    counts. Questions are answered by any model that says yes or no; papers have mPLUG-large, whose figures differ.

    Args:
        questions: the released dpg_bench.csv.
        asker: a reward whose score is P(yes) for the prompt as a question (default: VLMJudge).
    """

    name, artefact = "dpg", "dpg_bench.csv of github.com/TencentQQGYLab/ELLA; `Qwen/Qwen2.5-VL-7B-Instruct`"
    blind_to = "what no question asks about; whether the picture is beautiful"

    def __init__(self, questions: str = QUESTIONS, asker: Reward | None = None):
        super().__init__()
        self.asker = (asker or VLMJudge(question=ASK)).requires_grad_(False)
        self.questions: dict[str, list[dict]] = {}
        for row in read_table(fetch(questions)):
            parents = [int(part) for part in str(row["dependency"]).split(",")]
            category = row["tuple"].split("(")[0].split("-")[0].strip()
            one = {"number": int(row["proposition_id"]), "parents": parents, "category": category}
            self.questions.setdefault(row["item_id"], []).append(one | {"text": row["question_natural_language"]})

    def judge(self, images: Tensor, prompts: list[str], file_name) -> list[dict]:
        return [self.one(image, name) for image, name in zip(images, file_name, strict=True)]

    def one(self, image: Tensor, name: str) -> dict:
        if name not in self.questions:
            raise ValueError(f"dpg_bench.csv has no questions for {name}: take its own folder of prompts.")
        asked = self.questions[name]
        p = self.asker(image.expand(len(asked), -1, -1, -1), [one["text"] for one in asked])
        answers = {one["number"]: yes for one, yes in zip(asked, (p > 0.5).tolist())}
        counted = gated(answers, {one["number"]: one["parents"] for one in asked})
        scores = [("", 100 * sum(counted.values()) / len(counted))]
        scores += [(one["category"], 100.0 * answers[one["number"]]) for one in asked]
        said = {one["text"]: "yes" if answers[one["number"]] else "no" for one in asked}
        return {"scores": scores, "dpg": scores[0][1], "answers": said}
