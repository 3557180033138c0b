"""How a policy is trained: a low-rank adapter, or all of it."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the linear maps of diffusers' attention
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # and those of a text stream


def joint_attention(blocks: int) -> tuple[str, ...]:
    """JOINT_ATTENTION of a transformer of that many blocks; without the last block's to_add_out, whose output nothing
    reads."""
    return (*JOINT_ATTENTION[:-1], *(f"transformer_blocks.{i}.attn.to_add_out" for i in range(blocks - 1)))


class Adapter:
    """What of a policy is trained."""

    def prepare(self, policy: "Policy") -> None:
        """Makes trainable what is trained, of a policy whose weights are all frozen."""


class Frozen(Adapter):
    """Nothing: for methods that steer sampling or train a reward. Weights stay in the policy's dtype."""


class LoRA(Adapter):
    """Low-rank adapters (arXiv 2106.09685) on the denoiser by peft; the reference is the same model with them off.

    Args:
        rank: r.
        alpha: numerator of the scale alpha / r (default: r).
        target_modules: names of the linear layers that get one, matched at their end, or one regular expression of
            whole names (default: the model family's).
        init: of the A matrices; B starts at zero, so that the policy starts as its reference.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        target_modules: list[str] | str | None = None,
        init: str = "gaussian",
    ):
        self.rank, self.alpha, self.init = rank, alpha or rank, init
        self.target_modules = target_modules

    def prepare(self, policy):
        self.attach(policy, "default")

    def attach(self, policy: "Policy", name: str) -> None:
        """Adds adapters to the frozen denoiser, in float32 and without dropout; the one called "default" is trained and
        in use."""
        from diffusers.loaders import PeftAdapterMixin
        from peft import LoraConfig, inject_adapter_in_model

        denoiser, targets = policy.denoiser, self.target_modules or policy.lora_targets
        targets = targets if isinstance(targets, str) else list(targets)
        init = {"init_lora_weights": self.init, "target_modules": targets}
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, **init)
        if isinstance(denoiser, PeftAdapterMixin):
            denoiser.add_adapter(config, name)
        else:  # diffusers adapts no PixArt and no HunyuanDiT; peft does
            inject_adapter_in_model(config, denoiser, name)
        for key, p in denoiser.named_parameters():
            if f".{name}." in key:
                p.data = p.data.float()
        self.use(denoiser, "default")

    def use(self, denoiser: nn.Module, name: str | None) -> None:
        """Lets the denoiser run with the adapter of that name; None: with none. The one called "default" stays the only
        one that is trained, whichever is in use."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in denoiser.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(name is not None)
                if name is not None:
                    layer.set_adapter(name)
        for key, p in denoiser.named_parameters():
            if "lora_" in key:
                p.requires_grad_(".default." in key)


class Full(Adapter):
    """Training of the whole denoiser with float32 weights; the reference is a frozen copy.

    Args:
        text_encoder: train the text encoders too.
    """

    def __init__(self, text_encoder: bool = False):
        self.text_encoder = text_encoder

    def prepare(self, policy):
        policy.denoiser.float().requires_grad_(True)
        if self.text_encoder:
            encoders = (e.float().requires_grad_(True) for e in policy._encoders())
            policy.text_encoders = nn.ModuleList(encoders)
