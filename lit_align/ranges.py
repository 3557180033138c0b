"""The allowed range of every number that a method, sampler or transition takes, in one place."""

import math
from typing import Any

POSITIVE, NOT_NEGATIVE, SHARE, FINITE = "greater than 0", "0 or more", "in [0, 1]", "a finite number"
COUNT = "1 or more"
TESTS = {
    POSITIVE: lambda x: x > 0,
    NOT_NEGATIVE: lambda x: x >= 0,
    SHARE: lambda x: 0 <= x <= 1,
    FINITE: lambda x: True,
    COUNT: lambda x: x >= 1,
}
RANGES = {
    "steps": COUNT,
    "guidance_scale": FINITE,
    "eta": SHARE,
    "beta": POSITIVE,
    "alpha": POSITIVE,
    "tau": NOT_NEGATIVE,
    "clip_range": POSITIVE,
    "max_advantage": POSITIVE,
    "max_grad_norm": POSITIVE,
    "samples_per_prompt": COUNT,
    "updates": COUNT,
    "inner_epochs": COUNT,
    "minibatch": COUNT,
    "accumulate": COUNT,
    "refresh_every": NOT_NEGATIVE,
    "kl_weight": NOT_NEGATIVE,
    "beta_ema": NOT_NEGATIVE,
    "value_lr": NOT_NEGATIVE,
    "surrogate_lr": NOT_NEGATIVE,
    "caption_dropout": SHARE,
    "fraction": SHARE,
    "mixture": SHARE,
    "quantile": SHARE,
    "safeguard": SHARE,
    "discount": NOT_NEGATIVE,
    "temperature": POSITIVE,
    "threshold": FINITE,
    "weight": FINITE,
}


def check_ranges(owner: Any, ranges: dict[str, str] | None = None) -> None:
    """Raises ValueError if an attribute of `owner` is outside the range that RANGES gives for its name.

    Args:
        owner: a method, sampler or transition.
        ranges: ranges of its own, where a name means something else (`beta` of a method that may leave it at 0).
    """
    for name, allowed in (RANGES | (ranges or {})).items():
        value = vars(owner).get(name)
        for x in value if isinstance(value, list | tuple) else [value]:
            if isinstance(x, int | float) and not isinstance(x, bool) and not (math.isfinite(x) and TESTS[allowed](x)):
                raise ValueError(f"{type(owner).__name__}: {name} is {x}; it must be {allowed}.")
