"""Co-Merge of SafetyDPO / AlignGuard (arXiv 2412.10493): merges several LoRA experts into one LoRA.

`python -m lit_align merge --policy StableDiffusion --policy.pretrained checkpoints/shapes-sd --out merged
--experts '[checkpoints/safety-red/policy, checkpoints/safety-cross/policy]' --prompts '[red.jsonl, cross.jsonl]'`

Each expert samples from its own prompts. Each weight of the merged LoRA is taken from the expert in which that weight
is most active.

Source: the official repository's description says that the experts have one architecture, that activity is compared
weight by weight over all inputs, and that the merged LoRA consists of the winners' weights. The repository has no code
for the merging, and we did not have the paper's text. Our reading: the weights are the entries of A and B, so that the
result is a LoRA of the same rank (selected entries of B A would not be one); the activity of w_ij is |w_ij x_j|,
averaged over all inputs of the layer while the expert samples. Entries of two experts' A correspond only if both
started from the same A, so train the experts with the same seed.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_align.data.tables import read_prompts
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.policy import Policy


def lora_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The A and B layers of every adapted layer: {name: module}."""
    return {name: m for name, m in denoiser.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))}


@contextmanager
def input_magnitudes(layers: dict[str, nn.Module]):
    """Yields a dict that holds, after the block, the mean |x_j| (in,) of each layer's inputs within the block."""
    total = {name: torch.zeros(m.weight.shape[1], device=m.weight.device) for name, m in layers.items()}
    count, means = dict.fromkeys(layers, 0), {}

    def record(name: str, x: Tensor) -> None:
        x = x.movedim(1, -1) if x.ndim == 4 else x  # a convolution: channels last
        rows = x.detach().float().abs().flatten(0, -2)
        total[name] += rows.sum(0)
        count[name] += len(rows)

    handles = [m.register_forward_pre_hook(lambda _, x, name=name: record(name, x[0])) for name, m in layers.items()]
    yield means
    for handle in handles:
        handle.remove()
    means.update({name: total[name] / max(count[name], 1) for name in layers})


def activity(policy: Policy, sampler: Sampler, prompts: list[str], batch: int = 8) -> dict[str, Tensor]:
    """The mean |w_ij x_j| of each LoRA weight, in its shape, while the policy samples from the prompts."""
    layers = lora_layers(policy.denoiser)
    with input_magnitudes(layers) as means:
        for i in range(0, len(prompts), batch):
            texts = prompts[i : i + batch]
            sampler(policy, texts, seeds=list(range(i, i + len(texts))))
    along = lambda m, w: m.view(1, -1, *[1] * (w.ndim - 2))
    return {name: m.weight.detach().abs() * along(means[name], m.weight) for name, m in layers.items()}


def most_active(weights: list[Tensor], active: list[Tensor]) -> Tensor:
    """Takes each entry from the tensor of `weights` in which it is most active; from the first of them in a tie."""
    return torch.stack(weights).gather(0, torch.stack(active).argmax(0, keepdim=True))[0]


def merge(
    policy: Policy,
    experts: list[str],
    prompts: list[str],
    out: str,
    sampler: Sampler | None = None,
    column: str = "prompt",
    n: int = 64,
    device: str = "cpu",
) -> None:
    """Merges LoRA experts into one LoRA, by the activity of their weights (SafetyDPO's Co-Merge, arXiv 2412.10493).

    Raises ValueError if the experts differ in rank, alpha or layers, or if there is not one prompt file for each.

    Args:
        policy: the base model.
        experts: folders or files that `load_lora_weights` reads.
        prompts: one prompt file for each expert.
        out: folder to write pytorch_lora_weights.safetensors to.
        sampler: how the experts sample (default: 50 DDIM steps, guidance 7.5).
        column: of the prompts in these files.
        n: number of prompts used from each file.
        device: where the model runs.
    """
    if len(experts) != len(prompts):
        raise ValueError(
            f"{len(experts)} experts and {len(prompts)} prompt files: give one prompt file for each expert."
        )
    policy, sampler = policy.to(device), sampler or Sampler()
    weights, active, kinds = [], [], []
    for expert, file in zip(experts, prompts):
        policy.pipe.unload_lora_weights()
        policy.pipe.load_lora_weights(expert, adapter_name="default")
        weights.append({name: m.weight.detach().clone() for name, m in lora_layers(policy.denoiser).items()})
        alpha = policy.denoiser.peft_config["default"].lora_alpha
        kinds.append((alpha, {name: w.shape for name, w in weights[-1].items()}))
        if kinds[-1] != kinds[0]:
            raise ValueError(f"{expert} differs from {experts[0]} in rank, alpha or layers: experts must be alike.")
        active.append(activity(policy, sampler, read_prompts(file, column)["prompt"][:n]))
    for name, layer in lora_layers(policy.denoiser).items():
        layer.weight.data = most_active([w[name] for w in weights], [a[name] for a in active])
    policy.save_lora(out)
    print(f"merged {len(experts)} experts into {out}")
