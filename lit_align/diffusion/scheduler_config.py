"""What a diffusers scheduler's config says about the process; what is not read is refused by name."""

import math
from collections.abc import Callable

VP = (
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "DDIM",
    "DDIMParallel",
    "DDPM",
    "DDPMParallel",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSDE",
    "DPMSolverSinglestep",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LMSDiscrete",
    "PNDM",
    "SASolver",
    "UniPCMultistep",
)
FLOW_GRIDS = {
    "FlowMatchEulerDiscrete": "ends",
    "FlowMatchHeunDiscrete": "ends",
    "UniPCMultistep": "unipc",
    "DPMSolverMultistep": "dpm_solver",
    "SCM": "scm",
}
CONSISTENCY = ("LCM", "TCD")
# option -> the values with which it does nothing
UNREAD = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
    "thresholding": (False, None),
    "clip_sample": (False, None),
    "timestep_type": ("discrete", None),
    "interpolation_type": ("linear", None),
    "sigma_min": (None,),
    "sigma_max": (None,),
}


def name(config: dict) -> str:
    """The scheduler's class without "Scheduler"; DDIM where the config does not say."""
    return config.get("_class_name", "DDIMScheduler").removesuffix("Scheduler")


def is_flow(config: dict) -> bool:
    """Whether the process is a flow; ValueError for a scheduler or an option that is not read."""
    flow = (
        "FlowMatch" in name(config)
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
        or name(config) == "SCM"
    )
    known = FLOW_GRIDS if flow else VP + CONSISTENCY
    if name(config) not in known:
        ours = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler or EulerDiscreteScheduler"
        raise ValueError(
            f"the scheduler {name(config)}Scheduler is not read: its steps would be wrong; if the model can be sampled "
            f"by {ours}, say so with policy.scheduler: {{_class_name: ...}}."
        )
    clips = name(config).startswith(("DDIM", "DDPM", *CONSISTENCY))  # in other schedulers the option does nothing
    for key, idle in UNREAD.items():
        if config.get(key) not in idle and (key != "clip_sample" or clips):
            neutral = {False: "false", None: "null"}.get(idle[0], idle[0])
            raise ValueError(
                f"the scheduler's {key}: {config[key]} is not read: steps would be others than its own; set "
                f"policy.scheduler: {{{key}: {neutral}}} to sample without it."
            )
    return flow


def is_consistency(config: dict) -> bool:
    """Whether the process is a consistency model's, on the grid of its distillation."""
    return name(config) in CONSISTENCY


def ends_in_clean_data(config: dict) -> bool:
    """Whether a VP scheduler's last step leads to clean data, or to timestep 0. Only some schedulers read
    set_alpha_to_one; in the others' published files it does nothing."""
    if name(config).startswith(("DDIM", "PNDM", "CogVideoX")):
        return config.get("set_alpha_to_one", not name(config).startswith("PNDM"))
    return config.get("final_sigmas_type", "zero") == "zero"


def own_grid(config: dict) -> str:
    """The grid of a flow's scheduler where its pipeline gives none."""
    return FLOW_GRIDS[name(config)]


def flow_shift(
    config: dict, tokens: int | None, mu: Callable[[int, int], float] | None
) -> float | Callable[[int], float]:
    """The shift of a flow: static, or dynamic by the image's number of tokens (and by the number of steps, where `mu`
    says so)."""
    if not config.get("use_dynamic_shifting"):
        return config.get("shift" if "FlowMatch" in name(config) else "flow_shift", 1.0)
    if tokens is None:
        raise ValueError(
            "the scheduler shifts by resolution (use_dynamic_shifting): give the image's number of tokens."
        )
    shift = math.exp if config.get("time_shift_type", "exponential") == "exponential" else float
    if mu is not None:
        return lambda steps: shift(mu(tokens, steps))
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return shift(low + (high - low) * (tokens - few) / (many - few))
