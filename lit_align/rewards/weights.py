"""Published weights of rewards: reading files, and building transformers models with them."""

import torch
from torch import Tensor

from lit_align.paths import fetch


def read(file: str) -> dict[str, Tensor]:
    """The tensors of a file, local or `<owner>/<name>/<file>` on the hub: .safetensors, or PyTorch's format, in which
    they may lie under `state_dict` or `model`. Nothing but tensors is unpickled. Leaves out `position_ids`, which are
    no weights.
    """
    from safetensors.torch import load_file

    path = fetch(file)
    state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    state = state.get("state_dict", state.get("model", state))
    return {k: v for k, v in state.items() if not k.endswith("position_ids")}


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def build(cls: type, config, state: dict[str, Tensor], file: str, **kwargs):
    """A transformers model with the tensors of a file, in float32; names of older versions of transformers are known.
    Raises ValueError if a tensor lacks, is left over or has another shape."""
    model, report = cls.from_pretrained(
        None,
        config=config,
        state_dict=dict(state),
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **kwargs,
    )
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    check(file, cls.__name__, report["missing_keys"], report["unexpected_keys"], mismatched)
    return model


def fill(module: torch.nn.Module, state: dict[str, Tensor], file: str) -> None:
    """Copies the tensors of a file into a module. Raises ValueError as `build` does."""
    own = module.state_dict()
    mismatched = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    check(file, type(module).__name__, own.keys() - state.keys(), state.keys() - own.keys(), mismatched)
    module.load_state_dict(state)


def check(file: str, what: str, missing, unexpected, mismatched) -> None:
    for names, fault in ((missing, "lacks"), (unexpected, "has besides"), (mismatched, "has in another shape")):
        if names:
            raise ValueError(f"{file} holds no {what} of this architecture: it {fault} {sorted(names)[0]}.")
