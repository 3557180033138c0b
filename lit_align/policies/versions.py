"""Other weights of a policy: its reference, an old policy, further named ones, and frozen ones from files."""

import copy
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lit_align.policies import loading, lora_files
from lit_align.policies.adapters import LoRA

if TYPE_CHECKING:
    from lit_align.policies.policy import Policy

REFERENCE, OLD = "reference", "old"


class Versions:
    """Versions of a policy's weights, by name. With LoRA each is a further adapter on the denoiser; else a frozen copy
    of the denoiser, kept in `policy._frozen`, which takes the denoiser's place while it is active.

    Args:
        policy: whose weights.
    """

    def __init__(self, policy: "Policy"):
        self.policy = policy
        self.names: set[str] = set()
        self.loaded: set[str] = set()  # of them those that came from files, and are in no checkpoint
        self.active: str | None = None  # None: the policy itself

    @property
    def _lora(self) -> bool:
        return isinstance(self.policy.adapter, LoRA)

    def add(self, name: str) -> None:
        """Keeps the weights as they are now under a name; where the name exists, nothing happens."""
        policy = self.policy
        if name in self.names:
            return
        if policy.trains_text:
            raise ValueError("a policy whose text encoders are trained has no reference: set text_encoder: false.")
        self.names.add(name)
        if self._lora:
            policy.adapter.attach(policy, name)
            self.update(name)
            return
        policy._frozen[name] = copy.deepcopy(policy.denoiser).requires_grad_(False)
        if policy.compiles:
            policy._frozen[name].compile()

    def load(self, name: str, source: str) -> None:
        """Keeps weights of a file under a name: with LoRA a LoRA file or its folder, of any rank; else the denoiser of
        a pipeline's folder. Where the name exists, nothing happens. "tiny": random weights near the policy's own."""
        policy = self.policy
        if name in self.names:
            return
        if source == "tiny":
            self.add(name)
            self.perturb(name)
        elif self._lora:
            lora_files.attach(policy, source, name)
        else:
            policy._frozen[name] = loading.denoiser_of(policy, source).requires_grad_(False).eval()
        self.names.add(name)
        self.loaded.add(name)

    @torch.no_grad()
    def perturb(self, name: str, scale: float = 0.02) -> None:
        """Adds noise to a version, the same for the same name."""
        noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        lora = [p for key, p in self.policy.denoiser.named_parameters() if f".{name}." in key]
        for p in lora if self._lora else self.policy._frozen[name].parameters():
            p.add_(scale * torch.randn(p.shape, generator=noise).to(p))

    @torch.no_grad()
    def update(self, name: str, decay: float = 0.0) -> None:
        """version <- decay version + (1 - decay) theta, over the trained parameters."""
        named = dict(self.policy.denoiser.named_parameters())
        if self._lora:
            pairs = [(named[n.replace(f".{name}.", ".default.")], p) for n, p in named.items() if f".{name}." in n]
        else:
            pairs = zip(named.values(), self.policy._frozen[name].parameters())
        for now, then in pairs:
            then.mul_(decay).add_(now, alpha=1 - decay)

    @contextmanager
    def use(self, name: str):
        """Inside, the policy has the weights of that name; with LoRA, a reference that was not added is the base model
        without adapters."""
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, name: str | None) -> None:
        policy = self.policy
        if name == self.active:
            return
        if self._lora:
            base = name == REFERENCE and name not in self.names
            policy.adapter.use(policy.denoiser, None if base else name or "default")
        else:
            for key in filter(None, (self.active, name)):
                policy.denoiser, policy._frozen[key] = policy._frozen[key], policy.denoiser
        self.active = name
