"""Writes docs/evaluation.md: how to evaluate, every metric, and where the survey's datasets and metrics are.

`python -m lit_align.studies.evaluation`
"""

import argparse
import inspect
import re
from pathlib import Path

from lit_align.cli import import_all
from lit_align.cli_errors import subclasses
from lit_align.configs import CONFIGS
from lit_align.overview import brief, header
from lit_align.paths import PACKAGE, ROOT
from lit_align.studies.methods import is_base, links
from lit_align.studies.rewards import test_file
from lit_align.studies.runs import markdown

PAGE = ROOT / "docs/evaluation.md"
INTRO = """# Evaluation

Written by `python -m lit_align.studies.evaluation`, out of the classes.

## How to evaluate

While a model trains, `validate` and `test` score its samples by the `rewards` of the recipe, and measure all samples
together by its `metrics`, logged as `val/metric/<name>`:

```yaml
model:
  init_args:
    metrics:
      - {class_path: VendiScore, init_args: {features: {class_path: CLIPFeatures}}}
      - {class_path: FID, init_args: {reference: coco/val2014, size: 256}}
```

`evaluate` measures a folder of images that `predict` wrote, or samples a config first; with `--against` beside
another one, from the same prompts and seeds:

```
python -m lit_align evaluate checkpoints/shapes/dpo/predict --config evaluate/shapes   # a folder
python -m lit_align evaluate shapes/dpo --ckpt_path last --config evaluate/shapes      # a config, sampled first
python -m lit_align evaluate dpo_sd15 --ckpt_path last --against dpo_sd15 --config evaluate/partiprompts   # win rates
python -m lit_align evaluate dpo_sd15 --ckpt_path last --config evaluate/variety --prompts mine.txt         # variety
```

It writes `results.json`, `results.md`, `results.jsonl` (every image), `sheet.png`, and `index.html`, one file with
both models' images side by side that opens in any browser without a network. Benchmarks with a format of their own
get their files, too (`geneval.jsonl`). Image k of prompt i has the seed i x `per_prompt` + k, whatever model it is
of. `--limit 20` tries a recipe on the first prompts, `--smoke true` with tiny weights.

`accuracy` measures how often rewards order images as people did, by several rules of ties, as the survey's Table 3
has it:

```
python -m lit_align accuracy --rewards '[PickScore, HPSv21, ImageReward, CLIPScore]' \\
    --data '[{class_path: HPDv2, init_args: {split: test}}, {class_path: ImageRewardDB, init_args: {split: test}}]'
```

## Before you quote a figure

- No published weights were at hand when this was written: classes are tested on small artefacts in the published
  formats, and published figures remain to be measured. A recipe's header says where its models differ from the
  paper's.
- An FID depends on the extractor (its name is a part of the metric's), on the number of images, and on how references
  are cropped and resized. With fewer images than features (2048) it is far too large.
- A model exploits the reward that it was trained on: include one that it was not.
- Accuracies by different rules of ties do not compare; published tables mix them.
- Detectors and question answerers of transformers stand in for those of some benchmarks, whose figures then differ
  from papers'.
"""
METRICS = ["class", "paper", "numbers", "artefact", "blind to", "test"]
DATASETS = {  # what section 5.1 of the survey names -> our class, and where it can be had if the class does not say
    "HPD v1": ("HPDv1", "OneDrive, links in github.com/tgxs002/align_sd"),
    "HPD v2": ("HPDv2", ""),
    "HPD v3": ("HPDv3", ""),
    "ImageRewardDB": ("ImageRewardDB", ""),
    "Pick-a-Pic v1, v2": ("PickAPic", ""),
    "MHP": ("MHP", "no release known"),
    "RichHF-18K": ("RichHF18K", "github.com/google-research-datasets/richhf-18k, `Exploration/richhf-18k`"),
    "Picsart Image-Social": ("ImageSocial", "no release known"),
    "VisionPrefer": ("VisionPrefer", "no release known"),
    "DiffusionDB": ("DiffusionDB", ""),
    "open-image-preferences": ("OpenImagePreferences", ""),
    "PartiPrompts, DrawBench, HPD's, GenEval's, T2I-CompBench's, DPG's, GenAI-Bench's, COCO's prompts": (
        "Prompts",
        "[hub.md](hub.md), and the headers of the recipes above",
    ),
}
MEASURES = {  # what section 5.2 of the survey names, and what came after -> our classes, and the recipe
    "preference accuracy (the survey's Table 3)": (["PairwiseAccuracy"], "`python -m lit_align accuracy`"),
    "win rate": (["WinRate"], "partiprompts, hpd_v2, pick_a_pic"),
    "Elo, and its correlation with people": (["Elo", "EloCorrelation"], ""),
    "HPS, PickScore, ImageReward, aesthetics, MPS, CLIPScore": (["MeanReward"], "partiprompts, coco"),
    "FID, KID, IS, CMMD": (["FID", "KID", "InceptionScore", "CMMD"], "coco"),
    "RichHF: NSS, KLD, AUC-Judd, SIM, CC of heat maps": (["NSS", "KLD", "AUCJudd", "SIM", "CC"], ""),
    "style similarity": (["StyleSimilarity"], ""),
    "DALL-Eval: skills, social bias": (["PaintSkills", "SocialBias"], "paintskills_object, _count, _spatial"),
    "HEIM, its automatic parts": (["MeanReward", "FractalDimension", "SocialBias", "FID"], "heim, coco"),
    "VPEval": (["VPEval"], "vpeval"),
    "LLMScore": (["LLMScore"], "llm_score"),
    "GenEval": (["GenEvalAccuracy"], "geneval"),
    "T2I-CompBench": (["T2ICompBench"], "t2i_compbench_color and others"),
    "DPG-Bench": (["DPGBench"], "dpg"),
    "GenAI-Bench, VQAScore": (["GenAIBench"], "genai_bench"),
    "diversity": (["PairwiseDistance", "VendiScore"], "variety"),
    "reward over-optimization: KL and reward": (["KLRewardFrontier"], ""),
}


def metrics() -> list[type]:
    """The metrics of lit_align/metrics that can be used as they are."""
    import_all()
    from lit_align.metrics.metric import Measure

    found = [c for c in subclasses(Measure) if c.__module__.startswith("lit_align.metrics.") and not is_base(c)]
    return sorted(found, key=lambda c: c.__name__.lower())


def known() -> dict[str, type]:
    """Every metric and dataset by name."""
    import_all()
    from lit_align.data.datamodule import AlignData

    return {c.__name__: c for c in [*metrics(), *subclasses(AlignData)]}


def link(cls: type) -> str:
    file = Path(inspect.getfile(cls)).relative_to(PACKAGE.parent).as_posix()
    return f"[`{cls.__name__}`](../{file})"


def row(cls: type) -> list[str]:
    """The cells of a metric's row."""
    doc = re.sub(r"\s*\((?:[^()]*arXiv[^()]*)\)", "", inspect.getdoc(cls).split("\n\n")[0])
    return [
        *links(cls),
        brief(" ".join(doc.split())).replace("|", "\\|"),
        cls.artefact or "-",
        cls.blind_to or "-",
        test_file(cls),
    ]


def dataset_row(name: str, cls: type, place: str) -> list[str]:
    """What is loaded, by which class, and the test of its format."""
    path = inspect.signature(cls.__init__).parameters.get("path")
    default = path.default if path and isinstance(path.default, str) else ""
    return [name, link(cls), place or (f"`{default}`" if default else "-"), format_test(cls)]


def format_test(cls: type) -> str:
    """The test of a dataset's published format: its own, or that of all published formats."""
    own, shared = test_file(cls), ROOT / "tests/data/test_published.py"
    mirror = f"test_{Path(inspect.getfile(cls)).stem}.py"
    named = re.search(rf"\b{cls.__name__}\b", shared.read_text())
    return own if mirror in own or not named else f"[`{shared.name}`](../{shared.relative_to(ROOT).as_posix()})"


def measure_row(name: str, classes: list[type], recipe: str) -> list[str]:
    artefacts = dict.fromkeys(c.artefact for c in classes if c.artefact)
    tests = dict.fromkeys(test_file(c) for c in classes)
    return [
        name,
        ", ".join(map(link, classes)),
        "; ".join(artefacts) or "none, or its reward's",
        recipe or "-",
        ", ".join(tests),
    ]


def recipes() -> list[list[str]]:
    """Recipe -> the beginning of its header."""
    files = sorted((CONFIGS / "evaluate").glob("*.yaml"))
    text = lambda path: brief(re.sub(r"(?m)^#? ?", "", header(path)))
    return [[f"[`{path.stem}`](../configs/evaluate/{path.name})", text(path)] for path in files]


def page() -> str:
    """The text of docs/evaluation.md."""
    classes = known()
    of = lambda names: [classes[name] for name in names]
    parts = [
        INTRO,
        "## Recipes\n\nOf `evaluate`, as `--config evaluate/<name>`.\n\n"
        + markdown(["recipe", "what it measures"], recipes()),
    ]
    datasets = [dataset_row(name, classes[cls], place) for name, (cls, place) in DATASETS.items()]
    head = "## Datasets\n\nThose of the survey's section 5.1, and newer ones, with what a class loads by default.\n\n"
    parts.append(head + markdown(["dataset", "class", "artefact", "test of the format"], datasets))
    measures = [measure_row(name, of(names), recipe) for name, (names, recipe) in MEASURES.items()]
    head = "## Metrics and benchmarks\n\nThose of the survey's section 5.2, and newer ones.\n\n"
    parts.append(head + markdown(["metric", "class", "artefact", "recipe", "test"], measures))
    parts.append("## All metrics\n\n" + markdown(METRICS, map(row, metrics())))
    return "\n".join(parts)


def main(args: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m lit_align.studies.evaluation", description=__doc__).parse_args(args)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
