"""What a run takes from a checkpoint: all trained weights, the state of the same optimizer, and no hyperparameters."""

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

COUNTERS = {"last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter", "_schedulers"}


def check_weights(module: nn.Module, state: dict[str, Tensor], where: str, policy_alone: bool = False) -> None:
    """Raises ValueError, one sentence, unless `state` holds every trained tensor of the module in its shape, and no
    trained tensor of another policy. Stored copies of the policy, such as an old one, may be left over; so may a value
    function, and it may be missing, where the weights of the `policy_alone` are taken."""
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if policy_alone:
        own = {name: p for name, p in own.items() if name.startswith("policy.")} or own
    mend = "give the --config that trained it."
    if missing := [name for name in own if name not in state]:
        what = f"lacks {len(missing)} of the {len(own)} trained tensors of this policy, {missing[0]} first"
        if len(missing) == len(own):
            what = "holds no weight of this policy"
        raise ValueError(f"{where} {what}: {mend}")
    left = [name for name in state if name.startswith("policy.") and name not in own and not is_copy(name)]
    if left:
        others = f"{left[0]} and {len(left) - 1} more tensors"
        raise ValueError(f"{where} trained {others} that this policy does not train: {mend}")
    for name, p in own.items():
        if p.shape != state[name].shape:
            found, due = tuple(state[name].shape), tuple(p.shape)
            raise ValueError(f"{where} holds {name} in shape {found} and this policy has {due}: {mend}")


def is_copy(name: str) -> bool:
    """Whether a tensor belongs to a stored copy of the policy: a reference that moved, or an old policy."""
    if name.startswith("policy._frozen."):
        return True
    before, lora, after = name.rpartition(".lora_")
    return bool(lora) and ".default." not in f".{after}."


def check_finite(state: dict[str, Tensor]) -> None:
    """Raises FloatingPointError if a floating-point tensor is not finite."""
    for name, value in state.items():
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"{name} is not finite: nothing was saved; resume from the checkpoint before it.")


def check_optimizer(saved: str | None, now: str) -> None:
    """Raises ValueError if the checkpoint's optimizer is of another class."""
    if saved not in (None, now):
        raise ValueError(
            f"the checkpoint holds the state of {saved} and this run's optimizer is {now}: resume with the same one, "
            "or start a new run from its weights with --model.init_from."
        )


def keep_counters(scheduler_state: dict) -> dict:
    """A scheduler's place in its schedule, without the schedule, which is this run's."""
    kept = {k: v for k, v in scheduler_state.items() if k in COUNTERS}
    if "lr_lambdas" in scheduler_state:  # LambdaLR wants an entry for each, None: nothing is stored of it
        kept["lr_lambdas"] = [None] * len(scheduler_state["lr_lambdas"])
    return kept


def restore_hyperparameters(optimizer, given: list[dict], schedulers: list) -> None:
    """After resuming: the learning rate, weight decay and so on of this run replace those of the checkpoint, and each
    change is logged. A schedule goes on where it was, at this run's learning rate."""
    for group, mine in zip(optimizer.param_groups, given):
        for name, value in mine.items():
            before = group.get("initial_lr", group["lr"]) if name == "lr" else group.get(name)
            if name in ("params", "initial_lr") or before == value:
                continue
            rank_zero_info(f"resumed: {name} {value} of this run replaces {before} of the checkpoint")
            if name == "lr" and "initial_lr" in group:
                group["lr"] *= value / before
                group["initial_lr"] = value
            else:
                group[name] = value
    for scheduler in schedulers:
        scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
