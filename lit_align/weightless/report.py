"""The table of an estimate, and what to switch on where a recipe does not fit."""

from dataclasses import dataclass

from lit_align.weightless.measure import GIB, Measured

COLUMNS = ("weights", "gradients", "optimizer", "reference", "encoders", "activations", "decode", "reward", "samples")
ADVICE = {  # part of a row's name -> what to add to the command
    "no checkpointing": "--model.policy.gradient_checkpointing false",
    "checkpointing": "--model.policy.gradient_checkpointing true",
    "8-bit": "--model.optimizer bitsandbytes.optim.AdamW8bit",
    "FSDP": "--config fsdp.yaml",
    "LoRA": "--model.policy.adapter LoRA",
    "Full": "--model.policy.adapter Full",
}


@dataclass
class Row:
    """A configuration: its name, GiB of a device at the peak, and what they are for."""

    name: str
    peak: float
    of: dict[str, float]


def rows(found: list[Measured], devices: int, fsdp: bool) -> list[Row]:
    """Every measured configuration as it is, with an 8-bit AdamW, and on several devices sharded by FSDP. The first is
    the recipe's own."""
    out = []
    for one in found:
        for name, peak in one.peaks.items():
            sharded = "FSDP" in name
            if name == "plain" or (sharded and devices == 1) or (name != "given" and not one.trained):
                continue
            if one.name == "as given" and fsdp and not sharded:
                continue  # a strategy that shards is not switched off
            parts = [part for part in (one.name, name) if part not in ("as given", "given")]
            label = ", ".join(parts) or "as given"
            label = "as given" if fsdp and label == "FSDP" else label
            out.append(Row(label, peak.total / GIB, {key: peak.parts[key] / GIB for key in COLUMNS}))
    return out


def advice(table: list[Row], memory: float) -> str:
    """One sentence: whether the recipe fits, else the row with the fewest changes that does."""
    first, *others = table
    if first.peak <= memory:
        return f"It fits: {first.peak:.1f} of {memory:.1f} GiB."
    fitting = [row for row in others if row.peak <= memory and "no checkpointing" not in row.name]
    if not fitting:
        return f"It does not fit {memory:.1f} GiB ({first.peak:.1f}), nor does any row: a smaller batch or resolution."
    best = min(fitting, key=lambda row: ("LoRA" in row.name, row.name.count(","), row.peak))
    flags = " ".join(ADVICE[part] for part in best.name.split(", "))
    return f"It does not fit {memory:.1f} GiB ({first.peak:.1f}). It fits with {best.name} ({best.peak:.1f}): {flags}"


def hours(one: Measured, chip_tflops: float, utilisation: float, steps: int) -> float:
    """Of a recipe of `steps` optimizer steps."""
    seconds = one.flops / 1e12 / (chip_tflops * utilisation)
    return steps * one.batches / one.steps * seconds / 3600


def report(found: list[Measured], chip, name: str, devices: int, utilisation: float, fsdp: bool, steps: int) -> list:
    """Lines for a terminal."""
    first, table = found[0], rows(found, devices, fsdp)
    used = [key for key in COLUMNS if any(row.of[key] >= 0.05 for row in table)]
    parts = ", ".join(f"{part} {n / 1e6:,.0f}" for part, n in first.parts.items())
    trained = f"{first.trained / 1e6:,.1f} trained, {first.frozen / 1e6:,.1f} of the denoiser frozen"
    width = max(len(row.name) for row in table) + 2
    lines = [f"millions of parameters: {trained} ({parts})", f"GiB on each of {devices} at its peak:"]
    lines.append(" " * width + f"{'peak':>7}" + "".join(f"{key:>12}" for key in used))
    for row in table:
        lines.append(f"{row.name:<{width}}{row.peak:>7.1f}" + "".join(f"{row.of[key]:>12.1f}" for key in used))
    lines.append(advice(table, chip.memory) if chip.memory != float("inf") else "")
    tflop, per = first.flops * first.batches / first.steps / 1e12, "an optimizer step" if first.trained else "a batch"
    amount = f"{tflop:,.0f}" if tflop >= 100 else f"{tflop:.3g}"
    lines.append(f"{amount} TFLOP {per} on each device ({first.rows * first.batches} rows)")
    if steps > 0 and first.trained and chip.tflops == chip.tflops:
        took = hours(first, chip.tflops, utilisation, steps)
        at = f"{utilisation:.0%} of {chip.tflops:,.0f} TFLOP/s ({name})"
        lines.append(f"{took:,.1f} hours for {steps:,} steps at {at}, validation and loading left out")
    if first.uncounted:
        lines.append(f"not counted: the weights and work of {', '.join(first.uncounted)} (docs/rewards.md)")
    return lines
