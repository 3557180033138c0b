"""Writes docs/rewards.md: every reward, the weights that it loads, its scale, and what it does not see.

`python -m lit_align.studies.rewards`
"""

import argparse
import inspect
import re
from pathlib import Path

from lit_align.cli import import_all
from lit_align.cli_errors import subclasses
from lit_align.paths import PACKAGE, ROOT
from lit_align.studies.methods import is_base, links
from lit_align.studies.runs import markdown

PAGE = ROOT / "docs/rewards.md"
HEADS = [
    "class",
    "paper",
    "artefact",
    "licence",
    "scale",
    "tokens",
    "gradient",
    "blind to",
    "test of the format",
]
INTRO = """# Rewards

Written by `python -m lit_align.studies.rewards`, out of the classes. A reward is `--model.reward NAME` in methods that
train on one, and one of the list `--model.rewards` for validation and test. "gradient" says whether gradients reach the
image, which the reward-gradient methods need. "tokens" is how many of a prompt are read, with those that mark its ends
(-: no limit); longer prompts lose their end, and `val/truncated/<name>` is the share of them. A licence is that of the
weights, where it is known: read it at its source before you use them.

The test builds a small file in the published format, loads it, and compares the scores with an independent computation
on the same tensors. No published weights were at hand, so published numbers remain to be measured.

## Which to take

- To compare with a paper, take the reward that it quotes. `--config judges.yaml` after a recipe scores validation and
  test by the six that are quoted most. Most tables have 100 x our `HPSv2` or `HPSv21`; the two do not compare.
- To train on people's taste, take `PickScore` or `HPSv21`, and validate by another one, say `ImageReward`: a policy
  learns to exploit the reward that it trains on. `AestheticScore`, which does not read the prompt, is the easiest.
- To train on what the prompt says, counts and places above all, no CLIP will do: take a reward that answers questions
  about the image or that detects objects.
- Of a wide or a high image, rewards that see "the central square" do not see the rest. HPS v2 sees the whole image.
- Every CLIP cuts a prompt of more than about 50 words, and `ImageReward` one of more than about 25.
- Several rewards: `WeightedSum` adds them, each standardised; `MultiReward` keeps them apart, for methods that can.
- To train one, take a recipe of reward modelling (`pickscore`, `hpsv2`, `image_reward`, `mps`, `richhf`,
  `social_reward`, or `BradleyTerry` with any reward that has weights). It writes `<run>/reward` in the format that its
  class loads, and says with which arguments. `docs/reward_training.md` measures the objectives on simulated annotators.
- A reward that is named twice, as what a method trains on and in `rewards`, is loaded twice: name another one there, or
  serve it (`docs/served_rewards.md`), which also leaves one copy for all ranks of a node.
- Official code rounds images to 8 bits before it scores them; here gradients go through, and nothing is rounded. That
  changes scores in the third decimal.

"""
ROOMS = {"rewards": "Published rewards and rules", "steps": "Rewards of noisy samples", "shapes": "Shapes"}


def rewards() -> dict[str, list[type]]:
    """Room of ROOMS -> the rewards in it that can be used as they are: by their folder under lit_align, and those of
    noisy samples apart."""
    import_all()
    from lit_align.rewards.reward import Reward
    from lit_align.rewards.step_reward import StepReward

    found: dict[str, list[type]] = {room: [] for room in ROOMS}
    for cls in sorted(subclasses(Reward) | subclasses(StepReward), key=lambda c: c.__name__.lower()):
        package, room = f"{cls.__module__}.".split(".")[:2]  # a class may come from a script
        if package == "lit_align" and room != "algorithms" and not is_base(cls):
            found["steps" if issubclass(cls, StepReward) else room].append(cls)
    return found


def differentiable(cls: type) -> str:
    """yes, no, or "depends": on options, or on the rewards that it combines."""
    fixed = getattr(cls, "differentiable", None)
    return "depends" if fixed is None else "yes" if fixed else "no"


def test_file(cls: type) -> str:
    """A link to the test that mirrors the class's file, else to the first that names the class, in its folder or
    elsewhere."""
    inside = Path(inspect.getfile(cls)).relative_to(PACKAGE)
    folder = ROOT / "tests" / inside.parent
    mirror = folder / f"test_{inside.name}"
    every = [*sorted(folder.glob("test_*.py")), *sorted((ROOT / "tests").rglob("test_*.py"))]
    naming = (path for path in every if re.search(rf"\b{cls.__name__}\b", path.read_text()))
    test = mirror if mirror.exists() else next(naming, None)
    return f"[`{test.name}`](../{test.relative_to(ROOT).as_posix()})" if test else "-"


def row(cls: type) -> list[str]:
    """The cells of a reward's row."""
    limit = cls.text_limit if isinstance(cls.text_limit, int) else "-"
    told = [cls.artefact, cls.licence, cls.scale, str(limit), differentiable(cls), cls.blind_to, test_file(cls)]
    return [*links(cls), *(cell or "-" for cell in told)]


def page() -> str:
    """The text of docs/rewards.md."""
    found = rewards()
    sections = [f"## {ROOMS[room]}\n\n" + markdown(HEADS, map(row, classes)) for room, classes in found.items()]
    return INTRO + "\n".join(sections)


def main(args: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m lit_align.studies.rewards", description=__doc__).parse_args(args)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
