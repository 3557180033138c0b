"""Noise hypernetworks: a LoRA of the denoiser predicts how the initial noise should change."""

import copy
import os

import torch
from torch import Tensor, nn

from lit_align.diffusion.hook import Hook
from lit_align.paths import fetch
from lit_align.policies.adapters import Frozen
from lit_align.policies.policy import Policy

LAST = {"unet": "conv_out", "transformer": "proj_out"}  # the denoiser's last layer


class NoiseNetwork(nn.Module):
    """f(x_T, c): the policy's denoiser at the noisiest time, with LoRA on all its linear layers and convolutions, whose
    last layer is the LoRA's alone. B starts at 0, so that f does.

    It shares the denoiser's weights, and holds LoRA weights of its own, in float32.

    Args:
        policy: a Frozen one.
        rank: of LoRA.
        alpha: numerator of its scale alpha / rank.
    """

    def __init__(self, policy: Policy, rank: int = 128, alpha: float = 256):
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        if not isinstance(policy.adapter, Frozen):
            raise ValueError("a noise hypernetwork is a LoRA of a frozen denoiser: set policy.adapter to Frozen.")
        shared = {id(t): t for t in (*policy.denoiser.parameters(), *policy.denoiser.buffers())}
        net, last = copy.deepcopy(policy.denoiser, shared), LAST[policy.denoiser_name]
        if not isinstance(getattr(net, last, None), nn.Linear | nn.Conv2d):
            name = type(policy).__name__
            raise ValueError(f"the last layer of {name}'s denoiser is not known to NoiseNetwork: use another family.")
        targets = [name for name, part in net.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        sizes = {"r": rank, "lora_alpha": alpha, "init_lora_weights": "gaussian", "target_modules": targets}
        self.net = inject_adapter_in_model(LoraConfig(**sizes), net, "noise")
        for name, p in self.net.named_parameters():
            p.requires_grad_("lora_" in name)
            if "lora_" in name:
                p.data = p.data.float()
        getattr(self.net, last).register_forward_hook(lora_alone)
        self.rank, self.alpha = rank, alpha

    def forward(self, policy: Policy, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """f (B, ...) of noise x at the noisiest time t (B,)."""
        own, policy.denoiser = policy.denoiser, self.net
        try:
            return policy.denoise(x, t, cond)
        finally:
            policy.denoiser = own

    def lora(self) -> dict[str, Tensor]:
        """Its own weights, by name."""
        return {name: p.detach() for name, p in self.net.named_parameters() if "lora_" in name}

    def save(self, folder: str) -> None:
        """Writes `<folder>/hyper_noise.safetensors`."""
        from safetensors.torch import save_file

        os.makedirs(folder, exist_ok=True)
        sizes = {"rank": str(self.rank), "alpha": str(self.alpha)}
        weights = {name: p.contiguous() for name, p in self.lora().items()}
        save_file(weights, os.path.join(folder, "hyper_noise.safetensors"), sizes)

    @staticmethod
    def load(file: str, policy: Policy) -> "NoiseNetwork":
        """From `save`, for a policy with the denoiser it was trained on."""
        from safetensors import safe_open

        with safe_open(fetch(file), "pt") as f:
            sizes, state = f.metadata() or {}, {name: f.get_tensor(name) for name in f.keys()}
        if not {"rank", "alpha"} <= sizes.keys():
            raise ValueError(f"{file} is no noise hypernetwork: it names no rank and alpha.")
        network = NoiseNetwork(policy, int(sizes["rank"]), float(sizes["alpha"]))
        ours = network.lora()
        fits = lambda name: name in ours and name in state and ours[name].shape == state[name].shape
        if wrong := sorted(name for name in ours.keys() | state.keys() if not fits(name)):
            raise ValueError(f"{file} was trained on another denoiser: {wrong[0]} does not fit.")
        with torch.no_grad():
            for name, p in ours.items():
                p.copy_(state[name])
        return network.requires_grad_(False)


def lora_alone(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """The part of a LoRA layer's output that is the LoRA's."""
    x = args[0].to(layer.lora_A["noise"].weight.dtype)
    return (layer.lora_B["noise"](layer.lora_A["noise"](x)) * layer.scaling["noise"]).to(output.dtype)


class HyperNoise(Hook):
    """Eyring et al. 2025 (arXiv 2508.09968): sampling starts from x_T + f(x_T, c), f a network that was trained by a
    reward, for one more evaluation of the denoiser. `NoiseHypernetwork` trains it, for samplers of few steps.

    Args:
        checkpoint: `hyper_noise.safetensors`; local, or `<owner>/<name>/<file>` on the hub. None: a new network, which
            moves nothing, as smoke runs have it.
        strength: factor of f; 0 changes nothing.
    """

    def __init__(self, checkpoint: str | None = None, strength: float = 1.0):
        self.checkpoint, self.strength = checkpoint, strength
        self.network: NoiseNetwork | None = None  # once its policy is known
        self.policy: list[Policy] = []

    def check(self, policy, sampler):
        if sampler.forgets_noise(policy):
            raise ValueError("HyperNoise moves the initial noise, which this sampler's first step replaces wholly.")

    def nfe(self, inside, steps):
        return inside + bool(self.strength)

    def on_init(self, policy, state):
        if self.strength:
            if self.policy != [policy]:
                network = NoiseNetwork.load(self.checkpoint, policy) if self.checkpoint else NoiseNetwork(policy)
                self.policy, self.network = [policy], network.to(state.x.device)
            t = state.sampler.timesteps(policy)[:1].to(state.x.device).expand(len(state.x))
            with torch.no_grad():
                state.x = state.x + self.strength * moved(self.network, policy, state, t)
        super().on_init(policy, state)


def moved(network: NoiseNetwork, policy: Policy, state, t: Tensor) -> Tensor:
    """f of the state's noise, a minibatch at a time."""
    rows = torch.arange(len(state.x)).split(state.minibatch or len(state.x))
    part = lambda row: network(policy, state.x[row], t[row], {k: v[row] for k, v in state.cond.items()})
    return torch.cat([part(row) for row in rows])
