"""Writes docs/what_fits.md: what every recipe needs of a GPU, by `estimate`.

`python -m lit_align.studies.what_fits`
"""

import argparse
import io
import json
from contextlib import redirect_stderr, redirect_stdout

from lit_align.cli import main as run
from lit_align.configs import CONFIGS, load_config
from lit_align.paths import ROOT
from lit_align.studies.runs import markdown
from lit_align.tools.estimate import CHIPS
from lit_align.weightless.measure import Measured
from lit_align.weightless.report import hours, rows

PAGE, NUMBERS = ROOT / "docs/what_fits.md", ROOT / "docs/what_fits.json"
UTILISATION, CHIP = 0.4, "h100"
HEADS = ["recipe", "trained, M", "peak", "of it activations", "8-bit", "FSDP", "TFLOP a step", "hours", "not counted"]
INTRO = """# What fits

Written by `python -m lit_align.studies.what_fits`, which runs `python -m lit_align estimate` for every recipe: one step of
the method on networks of full size whose tensors have shapes and no values. "peak" is GiB on each of the recipe's
devices, as it is written; "8-bit" with an 8-bit AdamW; "FSDP" with the denoiser sharded over these devices: weights,
gradients, optimizer and reference are divided, and the two largest blocks and what lies outside of blocks are there
whole. A step is an optimizer step, or one batch of a recipe that trains nothing. Hours are those of the recipe's steps at
40 % of the bf16 operations of an H100 (989 TFLOP/s), without validation and loading.

Not counted: CUDA's own 0.5 to 1 GiB, gaps of the allocator, cuDNN's work space, and the rewards of the last column, of
which small ones stood in. On the CPU, the test compares the peak with that of real steps; on a GPU it was not measured.

"""


def estimated(name: str) -> Measured | str:
    """The measurement of a recipe, or why there is none."""
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            cli = run(["estimate", "--config", name, "--chip", CHIP, "--given_only", "true"])
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1].removeprefix("lit_align: ")
    except Exception as error:  # a step that needs values
        return f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return cli.trainer.estimated[0]


def numbers(name: str, one: Measured) -> dict:
    """What the page shows of a recipe."""
    trainer = load_config(name)["trainer"]
    table = {row.name: row for row in rows([one], trainer["devices"], False)}
    peak = lambda key: round(table[key].peak, 1) if key in table else None
    steps = trainer.get("max_steps", -1) if one.trained else -1
    took = round(hours(one, CHIPS[CHIP].tflops, UTILISATION, steps), 1) if steps > 0 else None
    return {
        "trained": round(one.trained / 1e6, 1),
        "peak": peak("as given"),
        "activations": round(table["as given"].of["activations"], 1),
        "8-bit": peak("8-bit"),
        "FSDP": peak("FSDP"),
        "tflop": float(f"{one.flops * one.batches / one.steps / 1e12:.3g}"),
        "hours": took,
        "uncounted": one.uncounted,
    }


def page(found: dict[str, dict]) -> str:
    """The text of docs/what_fits.md."""
    lines, failed = [], []
    for name, told in sorted(found.items()):
        link = f"[`{name.removesuffix('.yaml')}`](../configs/{name})"
        if "failed" in told:
            failed.append(f"- {link}: {told['failed']}")
            continue
        cells = [told[key] for key in ("trained", "peak", "activations", "8-bit", "FSDP", "tflop", "hours")]
        lines.append([link, *("-" if c is None else c for c in cells), ", ".join(told["uncounted"]) or "-"])
    text = INTRO + markdown(HEADS, lines)
    return text + ("\nWithout an estimate:\n\n" + "\n".join(failed) + "\n" if failed else "")


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.studies.what_fits", description=__doc__)
    parser.add_argument("--recipes", nargs="*", help="those to estimate anew (default: all)")
    names = parser.parse_args(args).recipes or sorted(path.name for path in CONFIGS.glob("*.yaml"))
    found = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    found = {name: told for name, told in found.items() if (CONFIGS / name).exists()}
    for name in names:
        one = estimated(name)
        found[name] = {"failed": one} if isinstance(one, str) else numbers(name, one)
        print(name, found[name], flush=True)
        NUMBERS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(found))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
