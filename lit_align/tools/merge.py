"""Co-Merge: one LoRA out of several experts, by SafetyDPO / AlignGuard (arXiv 2412.10493).

`python -m lit_align.merge --policy StableDiffusion --policy.pretrained checkpoints/shapes-sd --experts
checkpoints/safety-red/policy checkpoints/safety-cross/policy --prompts red.jsonl cross.jsonl --out merged`

Every expert is run on its prompts, and each weight of the merged LoRA is that of the expert in which it is the most
active.

Read in the official repository's description: experts of one architecture; the comparison is made weight by weight over
all inputs; the merged LoRA is put together from the winners' weights. Its code does not hold the merging, and the
paper's text was not at hand. Our reading: the weights are the entries of A and of B, so that the result is a LoRA of
the same rank (chosen entries of B A would not be); the activation of w_ij is |w_ij x_j|, its mean over all that passes
through the layer while the expert samples from its own prompts. Entries of two experts' A stand for one another only
when both started from the same A: train experts with the same seed.
"""

from contextlib import contextmanager

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lit_align.data.tables import read_prompts
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.policy import Policy


def lora_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The A and B of every adapted layer, by name."""
    return {name: m for name, m in denoiser.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))}


@contextmanager
def input_magnitudes(layers: dict[str, nn.Module]):
    """Records the layers' inputs inside; the dict it yields holds, on leaving, each one's mean |x_j|: (in,)."""
    total = {name: torch.zeros(m.weight.shape[1], device=m.weight.device) for name, m in layers.items()}
    count, means = dict.fromkeys(layers, 0), {}

    def record(name: str, x: Tensor) -> None:
        x = x.movedim(1, -1) if x.ndim == 4 else x  # a convolution's channels
        rows = x.detach().float().abs().flatten(0, -2)
        total[name] += rows.sum(0)
        count[name] += len(rows)

    handles = [m.register_forward_pre_hook(lambda _, x, name=name: record(name, x[0])) for name, m in layers.items()]
    yield means
    for handle in handles:
        handle.remove()
    means.update({name: total[name] / max(count[name], 1) for name in layers})


def activity(policy: Policy, sampler: Sampler, prompts: list[str], batch: int = 8) -> dict[str, Tensor]:
    """The mean |w_ij x_j| of each LoRA layer while the policy samples from the prompts, in the weight's shape."""
    layers = lora_layers(policy.denoiser)
    with input_magnitudes(layers) as means:
        for i in range(0, len(prompts), batch):
            texts = prompts[i : i + batch]
            sampler(policy, texts, seeds=list(range(i, i + len(texts))))
    along = lambda m, w: m.view(1, -1, *[1] * (w.ndim - 2))
    return {name: m.weight.detach().abs() * along(means[name], m.weight) for name, m in layers.items()}


def most_active(weights: list[Tensor], active: list[Tensor]) -> Tensor:
    """Each entry from the tensor of `weights` where it is the most active (the first of equals)."""
    return torch.stack(weights).gather(0, torch.stack(active).argmax(0, keepdim=True))[0]


def merge(policy: Policy, experts: list[str], prompts: list[list[str]], out: str, sampler: Sampler) -> None:
    """Writes the merge of LoRA experts, folders or files that `load_lora_weights` reads, to the folder `out`."""
    weights, active, kinds = [], [], []
    for expert, texts in zip(experts, prompts, strict=True):
        policy.pipe.unload_lora_weights()
        policy.pipe.load_lora_weights(expert, adapter_name="default")
        weights.append({name: m.weight.detach().clone() for name, m in lora_layers(policy.denoiser).items()})
        alpha = policy.denoiser.peft_config["default"].lora_alpha
        kinds.append((alpha, {name: w.shape for name, w in weights[-1].items()}))
        if kinds[-1] != kinds[0]:
            raise ValueError(f"{expert} differs from {experts[0]} in rank, alpha or layers: experts must be alike.")
        active.append(activity(policy, sampler, texts))
    for name, layer in lora_layers(policy.denoiser).items():
        layer.weight.data = most_active([w[name] for w in weights], [a[name] for a in active])
    policy._save_lora(out, policy.denoiser.state_dict())


def main(args: list[str] | None = None) -> None:
    from lit_align.cli import import_all

    import_all()
    parser = ArgumentParser(prog="python -m lit_align.merge", description=__doc__)
    parser.add_subclass_arguments(Policy, "policy", required=True)
    parser.add_class_arguments(Sampler, "sampler")
    parser.add_argument("--experts", nargs="+", required=True, help="LoRA folders or files")
    parser.add_argument("--prompts", nargs="+", required=True, help="a file of prompts for each expert")
    parser.add_argument("--column", default="prompt", help="of those files")
    parser.add_argument("--n", type=int, default=64, help="prompts of each file that are used")
    parser.add_argument("--out", required=True, help="folder for pytorch_lora_weights.safetensors")
    parser.add_argument("--device", default="cpu")
    given = parser.instantiate_classes(parser.parse_args(args))
    if len(given.experts) != len(given.prompts):
        parser.error(f"{len(given.experts)} experts and {len(given.prompts)} files of prompts: give one for each.")
    prompts = [read_prompts(path, given.column)["prompt"][: given.n] for path in given.prompts]
    merge(given.policy.to(given.device), given.experts, prompts, given.out, given.sampler)
    print(f"{len(given.experts)} experts merged in {given.out}")


if __name__ == "__main__":
    main()
