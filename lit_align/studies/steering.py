"""Writes docs/steering.md: which training-free method to take for which budget, and what each gains on Shapes against what
it costs.

`python -m lit_align.studies.steering --methods best_of_n fk_steering --seeds 1 2 3` measures; without methods it writes
the page. Measurements are kept in docs/steering.json, and runs that it holds are not repeated. Several processes can
share the work: each takes runs that no other is at.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean

import yaml

from lit_align.configs import load_config
from lit_align.paths import ROOT
from lit_align.shapes import WORLD
from lit_align.studies import plot, results
from lit_align.studies.runs import add_record, alone, lit_align, markdown, measurements, read_records, world_of

RUNS, RECORDS = Path("checkpoints/steering"), ROOT / "docs/steering.json"
PAGE, FIGURE = ROOT / "docs/steering.md", ROOT / "docs/steering.png"
FACTORS = (2, 4, 8)  # times the evaluations of plain sampling, which is what every run compares with
BATCHES = 8  # of 32 held-out prompts
OWN = "own"  # the factor of a method that has no knob: it is measured at its own cost
BUDGETED = {  # samplers around samplers: what is set to a large number, so that max_nfe ends the search
    "best_of_n": "n",
    "random_search": "n",
    "rejection": "n",
    "zero_order": "iterations",
    "spectral_search": "n",
    "tree_sampling": "n",
    "noise_selection": "n",
    "noise_inversion": "iterations",
    "reno": "iterations",
    "dno": "iterations",
    "doodl": "iterations",
    "reneg": "iterations",
}
COUNTED = {  # what is set to the factor
    "fk_steering": "particles",
    "das": "particles",
    "svdd_pm": "candidates",
    "dsearch": "beam",
    "demon": "noises",
    "path_search": "branches",
    "opt2i": "candidates",
}
NEEDS = {  # what a practitioner must have -> the methods of configs/shapes, and a sentence
    "nothing but the model": (
        "cfgpp pag sag zigzag noise_selection noise_inversion",
        "CFG++ costs nothing: try it first. PAG and SAG take one more evaluation a step, Z-sampling about three times "
        "plain sampling.",
    ),
    "the words of the prompt": (
        "attend_excite divide_bind attention_modulation structure initno layout_guidance prompt2prompt",
        "For objects that go missing and colours that go astray; UNets, and networks of the noisiest step for InitNO. "
        "Layout guidance wants boxes, Prompt-to-Prompt an original to edit.",
    ),
    "a language model": (
        "promptist reprompt opt2i pae",
        "No evaluation is added, except by OPT2I, which draws images of every prompt that it tries. RePrompt needs lists "
        "of words alone.",
    ),
    "a second network of the model, or a small one of the noise": (
        "autoguidance chats npo_guidance golden_noise hyper_noise",
        "At the cost of plain sampling; each is trained first, golden noise and noise hypernetworks by a recipe of ours.",
    ),
    "a reward, as a black box": (
        "best_of_n random_search rejection zero_order path_search evo_search spectral_search tree_sampling "
        "budget_forcing dsearch svdd_pm svdd_mc fk_steering demon",
        "Best-of-N is the yardstick: it needs no knob and no noise in the sampler, and any other is to beat it at the "
        "same evaluations. Particles (FK, SVDD) share what they learn on the way; SVDD-MC's network saves the decodes.",
    ),
    "a reward with a gradient": (
        "dps universal_guidance dymo das reno dno doodl reneg",
        "A backward counts as an evaluation, and takes the memory of one step. ReNO is for models of one to four steps. "
        "A gradient finds what the reward does not see: look at a second judge.",
    ),
}
INTRO = """# Steering: which method for which budget

Written by `python -m lit_align.studies.steering`. All of these change sampling and train nothing (where a small network
is trained first, it says so). A hook goes into `steering` of any sampler, a search goes around it, and they compose: a
trained policy, guidance and a search may stand in one config.

1. Say what you have: words, a reward, its gradient, a second network. The table lists what then is open.
2. Say what a picture may cost, in evaluations of the network (guidance counts two): `--model.sampler.max_nfe`.
3. Take best-of-N at that cost, and keep another method if it beats it on a judge that did not steer.

| you have | configs | what to know |
|---|---|---|
"""
MEASURED = """
## Measured

On Shapes, the first {prompts} held-out prompts, the exact judge, who sees the user's prompt and does not steer. "plain" is
the same sampler without steering, on the same prompts and seeds. Evaluations are forwards and backwards of the network
per prompt. The steering reward is the learnt one, in standard deviations of the base model's samples: where it rises and
the exact judge does not follow, the method has exploited it. Intervals are over prompts. World {world} alone.

"""


def methods() -> list[str]:
    """The configs that are measured."""
    return [name for names, _ in NEEDS.values() for name in names.split()]


def factors(method: str) -> list[str]:
    return [str(f) for f in FACTORS] if method in BUDGETED or method in COUNTED else [OWN]


def steered(method: str, factor: str) -> dict:
    """The config of a method that spends `factor` times what plain sampling does."""
    config = load_config(f"shapes/{method}")
    sampler = config["model"]["init_args"]["sampler"]
    own, inner = sampler["init_args"], sampler["init_args"].get("sampler", sampler)["init_args"]
    if factor == OWN:
        return config
    if method in BUDGETED:
        plain = inner["steps"] * (1 if inner["guidance_scale"] == 1 else 2)
        return merged(config, own, {BUDGETED[method]: 64, "max_nfe": int(factor) * plain})
    part = own if "sampler" in own else own["steering"][0]["init_args"]
    more = {"answers": 2 * int(factor)} if method == "opt2i" else {}
    less = 1 if method == "opt2i" else 0  # the user's own prompt is drawn, too
    return merged(config, part, {COUNTED[method]: int(factor) - less} | more)


def merged(config: dict, part: dict, options: dict) -> dict:
    part.update(options)
    return config


def measure(method: str, factor: str, seed: int, batches: int) -> dict:
    """Tests a method against plain sampling, and returns accuracy, steering reward and cost."""
    folder = RUNS / f"{method}-{factor}" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "steering.yaml"
    file.write_text(yaml.safe_dump(steered(method, factor), sort_keys=False))
    lit_align("test", "--config", str(file), "--trainer.default_root_dir", str(folder / "run"),
              "--seed_everything", str(seed), "--trainer.limit_test_batches", str(batches))  # fmt: skip
    compared = json.loads((folder / "run/comparison.json").read_text())
    kept = ("world", "cores", "machine", "test/diversity", "test/cost/nfe_forward", "test/cost/nfe_backward")
    found = {k: v for k, v in measurements(folder / "run").items() if k in kept}
    return found | {name: figures["all"] for name, figures in compared.items() if name in ("exact", "proxy")}


def nfe(run: dict) -> float:
    """Evaluations per prompt."""
    return sum(run.get(f"test/cost/nfe_{way}", 0.0) for way in ("forward", "backward"))


def gain(runs: list[dict], name: str = "exact") -> tuple[float, float, float]:
    """Mean before, mean after, and the half-width of the 95 % interval of the gain, over seeds."""
    found = [r[name] for r in runs if name in r]
    half = mean((r["gain_interval"][1] - r["gain_interval"][0]) / 2 for r in found)
    return mean(r["before"] for r in found), mean(r["after"] for r in found), half


def of_this_world(records: dict) -> dict[str, dict[str, list[dict]]]:
    """{method: {factor: runs}} of the present world."""
    found: dict = {}
    for method, by_factor in records.items():
        for factor, seeds in by_factor.items():
            if runs := [run for run in seeds.values() if world_of(run) == WORLD]:
                found.setdefault(method, {})[factor] = runs
    return found


def rows(records: dict, table: dict) -> list[list[str]]:
    """A row for each method and factor; for what was measured by `lit_align.studies.results` alone, its row there."""
    found, lines = of_this_world(records), []
    for method in methods():
        for factor, runs in sorted(found.get(method, {}).items()):
            lines.append([f"`{method}`", "" if factor == OWN else f"{factor} x", *cells(runs)])
        if method not in found:
            there = [run for run in table.get(method, {}).values() if world_of(run) == WORLD]
            more = [f"`{method}`", f"{there[0]['exact']['all']['n']} prompts"] if there else [f"`{method}`", ""]
            runs = [run | {"exact": run["exact"]["all"]} for run in there]
            lines.append([*more, *(cells(runs) if runs else ["not measured yet", "", "", "", ""])])
    return lines


def cells(runs: list[dict]) -> list[str]:
    before, after, half = gain(runs)
    reward = "-"
    if any("proxy" in run for run in runs):
        reward = "{:+.2f} -> {:+.2f}".format(*gain(runs, "proxy")[:2])
    change = f"{after - before:+.3f} [{after - before - half:+.3f}, {after - before + half:+.3f}]"
    return [f"{mean(map(nfe, runs)):.0f}", f"{before:.3f} -> {after:.3f}", change, reward, str(len(runs))]


def draw(records: dict) -> None:
    """The figure: exact accuracy, and steering reward, gained against evaluations; best-of-N is the black line."""
    figure, ((left, right),) = plot.panels(1, 2, 5.2, 4.2)
    colors = [plot.BLUE, plot.ORANGE, plot.GREEN, plot.PINK, plot.RED, "#56b4e9", "#8c6d31"]
    styles = ["-", "--", ":", "-."]
    for k, (method, by_factor) in enumerate(sorted(of_this_world(records).items())):
        yardstick = method == "best_of_n"
        look = {"color": plot.BLACK if yardstick else colors[k % 7], "linestyle": styles[k // 7 % 4], "marker": "o"}
        look |= {"linewidth": 2.5 if yardstick else 1.2, "markersize": 4, "label": method}
        for ax, name in ((left, "exact"), (right, "proxy")):
            points = sorted((mean(map(nfe, runs)), gain(runs, name)) for runs in by_factor.values() if name in runs[0])
            if points:
                ups = [after - before for _, (before, after, _) in points]
                ax.errorbar([x for x, _ in points], ups, [g[2] for _, g in points], capsize=2, **look)
    for ax, what in ((left, "exact accuracy"), (right, "steering reward")):
        ax.set_xlabel("network evaluations per prompt")
        ax.set_ylabel(f"gain in {what} over plain sampling")
        ax.set_xscale("log", base=2)
        ax.axhline(0, color="#999999", linewidth=0.8)
    left.set_title("the judge that does not steer", loc="left")
    right.set_title("the reward that steers", loc="left")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    plot.save(figure, FIGURE)


def page(records: dict, table: dict) -> str:
    """The text of docs/steering.md."""
    guide = "".join(
        f"| {what} | {', '.join(f'`{name}`' for name in names.split())} | {note} |\n" for what, (names, note) in NEEDS.items()
    )
    heads = ["config", "budget", "evaluations", "exact accuracy, plain -> steered", "gain, 95 % interval"]
    measured = MEASURED.format(prompts=32 * BATCHES, world=WORLD)
    picture = "![Gain against network evaluations](steering.png)\n\n" if of_this_world(records) else ""
    return INTRO + guide + measured + picture + markdown([*heads, "steering reward", "seeds"], rows(records, table))


def write() -> None:
    records = read_records(RECORDS)
    if of_this_world(records):
        draw(records)
    PAGE.write_text(page(records, read_records(results.RECORDS).get("0 s", {})))


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.studies.steering", description=__doc__)
    parser.add_argument("--methods", nargs="*", default=[], help="configs of configs/shapes, or all; none: the page")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--factors", nargs="+", default=None, help="of 2, 4, 8 and own (default: all of them)")
    parser.add_argument("--test_batches", type=int, default=BATCHES, help="batches of 32 held-out prompts")
    parser.add_argument("--again", action="store_true", help="repeat runs that are recorded")
    args = parser.parse_args(args)
    chosen = methods() if args.methods == ["all"] else args.methods
    if unknown := set(chosen) - set(methods()):
        parser.error(f"{sorted(unknown)[0]} is none of the methods; there are {', '.join(methods())}.")
    for seed in args.seeds:
        for method in chosen:
            for factor in [f for f in factors(method) if not args.factors or f in args.factors]:
                keys = (method, factor, str(seed))
                with alone(RUNS / "claims" / "-".join(keys), wait=False) as mine:
                    done = read_records(RECORDS).get(method, {}).get(factor, {}).get(str(seed), {})
                    if mine and (args.again or world_of(done) != WORLD):
                        add_record(RECORDS, keys, measure(method, factor, seed, args.test_batches))
    write()


if __name__ == "__main__":
    main()
