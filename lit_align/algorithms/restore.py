"""What a run takes from a checkpoint: all trained weights and the state of the same optimizer, no hyperparameters."""

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_align.paths import find

COUNTERS = {"last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter", "_schedulers"}


def check_weights(module: nn.Module, state: dict[str, Tensor], where: str, policy_alone: bool = False) -> None:
    """Raises ValueError unless `state` holds every trained tensor of the module, in its shape, and no trained tensor of
    another policy. Stored copies of the policy, such as an old one, are ignored. With `policy_alone` only the policy's
    tensors are required; a value function may be missing or left over."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if policy_alone:
        trained = {name: p for name, p in trained.items() if name.startswith("policy.")} or trained
    advice = "give the --config that trained it."
    if missing := [name for name in trained if name not in state]:
        what = f"lacks {len(missing)} of the {len(trained)} trained tensors of this policy, {missing[0]} first"
        if len(missing) == len(trained):
            what = "holds no weight of this policy"
        raise ValueError(f"{where} {what}: {advice}")
    extra = [name for name in state if name.startswith("policy.") and name not in trained and not is_copy(name)]
    if extra:
        others = f"{extra[0]} and {len(extra) - 1} more tensors"
        raise ValueError(f"{where} trained {others} that this policy does not train: {advice}")
    for name, p in trained.items():
        if p.shape != state[name].shape:
            saved, expected = tuple(state[name].shape), tuple(p.shape)
            raise ValueError(f"{where} holds {name} in shape {saved} and this policy has {expected}: {advice}")


def check_scale(module: nn.Module, checkpoint: dict, where: str) -> None:
    """Raises ValueError if the checkpoint's LoRA was trained with another alpha, thus at another strength."""
    saved, alpha = checkpoint.get("lora_alpha"), getattr(module.policy.adapter, "alpha", None)
    if None not in (saved, alpha) and saved != alpha:
        raise ValueError(
            f"{where} was trained with LoRA alpha {saved:g} and this policy has {alpha:g}, which changes its strength: "
            f"set --model.policy.adapter.alpha {saved:g}."
        )


def is_copy(name: str) -> bool:
    """True if a tensor belongs to a stored copy of the policy: an updated reference, or an old policy."""
    if name.startswith("policy._frozen."):
        return True
    before, lora, after = name.rpartition(".lora_")
    return bool(lora) and ".default." not in f".{after}."


def check_finite(state: dict[str, Tensor]) -> None:
    """Raises FloatingPointError if a floating-point tensor is not finite."""
    for name, value in state.items():
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"{name} is not finite: nothing was saved; resume from the checkpoint before it.")


def prepare(module, checkpoint: dict) -> None:
    """Checks a checkpoint against the module that loads it, and leaves in it what the module takes."""
    if "state_dict" not in checkpoint:  # absent in sharded checkpoints
        return
    state, policy = checkpoint["state_dict"], module.policy
    check_weights(module, state, "the checkpoint")
    check_scale(module, checkpoint, "the checkpoint")
    if not policy.reference_moves:  # `test` of a run that updated it
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("policy._frozen.reference.")}
    module.init_from = None  # these weights replace it
    if module._trainer is None and not policy.trains_text:  # load_from_checkpoint: still the base model
        policy.add_reference(moving=module.moves_reference)
    elif module._trainer is not None and module.trainer.training:
        keep_this_schedule(checkpoint, module.optimizer([nn.Parameter(torch.zeros(1))]))


def keep_this_schedule(checkpoint: dict, optimizer: torch.optim.Optimizer) -> None:
    """Leaves only the position of the checkpoint's schedules, so the schedule itself is this run's. Raises ValueError
    if its optimizer has another class than this run's."""
    saved, current = checkpoint.get("optimizer_class"), type(optimizer).__name__
    if saved not in (None, current):
        raise ValueError(
            f"the checkpoint holds the state of {saved} and this run's optimizer is {current}: resume with {saved}, "
            "or start a new run from its weights with --model.init_from."
        )
    checkpoint["lr_schedulers"] = [keep_counters(state) for state in checkpoint.get("lr_schedulers", [])]


def keep_counters(scheduler_state: dict) -> dict:
    """A scheduler's position in its schedule, without the schedule itself, which is this run's."""
    kept = {k: v for k, v in scheduler_state.items() if k in COUNTERS}
    if "lr_lambdas" in scheduler_state:  # LambdaLR requires one entry per group; None: not restored
        kept["lr_lambdas"] = [None] * len(scheduler_state["lr_lambdas"])
    return kept


def load_weights(module: nn.Module, path: str) -> None:
    """Loads the trained weights of a checkpoint file. Raises ValueError if one of the policy's is missing."""
    if path.endswith(".safetensors"):
        raise ValueError(f"init_from takes a .ckpt file of this library; {path} is none: load it by policy.lora.")
    checkpoint = torch.load(find(path), map_location="cpu", weights_only=True)
    weights = checkpoint["state_dict"]
    check_weights(module, weights, f"init_from {path}", policy_alone=True)
    check_scale(module, checkpoint, f"init_from {path}")
    module.load_state_dict(weights, strict=False)


def restore_hyperparameters(optimizer, hyperparameters: list[dict], schedulers: list) -> None:
    """After resuming, sets learning rate, weight decay and so on to this run's values instead of the checkpoint's, and
    logs each change. A schedule continues from its position, at this run's learning rate."""
    for group, values in zip(optimizer.param_groups, hyperparameters):
        for name, value in values.items():
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
