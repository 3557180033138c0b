"""The policy p_theta: one interface over the parts of a diffusers pipeline, whatever the model family."""

import copy
from abc import abstractmethod
from collections import Counter
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.diffusion.process import Process
from lit_align.paths import find
from lit_align.policies.adapters import Adapter, Frozen, Full, LoRA

REFERENCE, OLD = "reference", "old"  # names of what the policy was: LoRA adapters, or frozen copies


class Policy(nn.Module):
    """Base of the model families. A family says how a prompt is encoded and how its denoiser is called.

    Only what may be trained, its frozen copies and the process are submodules. Text encoders and VAE stay in
    `self.pipe`, the diffusers pipeline: no optimizer, checkpoint or sharding strategy sees them, and they follow the
    denoiser's device. Everything is always in eval mode: a policy has no dropout, so that a recorded step has ratio 1.

    Args:
        pretrained: hub id or folder of a diffusers pipeline; "tiny" for random weights of a tiny model of the family.
        adapter: LoRA, Frozen or Full (the default).
        dtype: of frozen weights; what is trained is float32.
        resolution: height and width of images, pixels (default: the model's own).
        gradient_checkpointing: recompute the denoiser's activations in backward.
        compile: run the denoiser through torch.compile (the first steps take minutes).
        quantize: load the frozen denoiser in 8 or 4 bits (bitsandbytes; needs CUDA and LoRA).
        vae: hub id or folder of another VAE, for instance one that is safe in float16.
        variant, revision: which files of the hub repository.
        allow_pickle: accept weights that are pickled (.bin), which can run code when loaded.
    """

    pipeline_class: str  # name in diffusers
    denoiser_name: Literal["unet", "transformer"]
    encoder_names: tuple[str, ...]  # text encoders in the pipeline; any may be missing
    left_out: tuple[str, ...] = ()  # parts of the pipeline not to load

    def __init__(
        self,
        pretrained: str,
        adapter: Adapter | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        resolution: int | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        quantize: Literal["int8", "int4"] | None = None,
        vae: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
    ):
        super().__init__()
        self.adapter = adapter or Full()
        self.dtype = getattr(torch, dtype)
        self.pipe = (
            self._tiny()
            if pretrained == "tiny"
            else self._load(pretrained, quantize, vae, variant, revision, allow_pickle)
        )
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        self.process = Process.from_scheduler(
            {**self.pipe.scheduler.config, "_class_name": type(self.pipe.scheduler).__name__}
        )
        self.denoiser = getattr(self.pipe, self.denoiser_name)
        self._frozen = nn.ModuleDict()  # name -> copy, of a policy that is trained in full
        self._copies: set[str] = set()  # names of what is kept
        self._active: str | None = None  # which of them the policy is at present; None: itself
        self.reference_moves = False  # whether the reference can be refreshed
        self.encoder_device: torch.device | None = None  # where encoders run; None: where the denoiser is
        self._null: dict[str, Tensor] | None = None
        self.calls = Counter()
        if isinstance(self.adapter, LoRA):
            self.adapter.attach(self.denoiser)
        elif isinstance(self.adapter, Full):
            self.denoiser.float().requires_grad_(True)
            if self.adapter.text_encoder:
                self.text_encoders = nn.ModuleList(e.float().requires_grad_(True) for e in self._encoders())
        if gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.compiles = compile
        if compile:
            self.denoiser.compile()  # in place: names and files stay as they are
        factor = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        self.resolution = resolution or self.denoiser.config.sample_size * factor
        self.latent_shape = (self.denoiser.config.in_channels, self.resolution // factor, self.resolution // factor)
        self.fingerprint = f"{type(self).__name__} {pretrained} {revision} {variant} {vae} {dtype} {self.resolution}"

    # Loading and saving

    def _load(self, pretrained, quantize, vae, variant, revision, allow_pickle):
        import diffusers

        pipeline, where = getattr(diffusers, self.pipeline_class), find(pretrained)
        source = {
            "variant": variant,
            "revision": revision,
            "torch_dtype": self.dtype,
            "use_safetensors": not allow_pickle,
        }
        try:
            index = pipeline.load_config(where, revision=revision)
            absent = {name: None for name, value in index.items() if value in ([None, None], (None, None))}
            absent |= {name: None for name in self.left_out}
            absent |= {name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in index}
            parts = absent | ({"requires_safety_checker": False} if "safety_checker" in absent else {})
            if vae:
                parts["vae"] = diffusers.AutoencoderKL.from_pretrained(
                    find(vae), torch_dtype=self.dtype, use_safetensors=not allow_pickle
                )
            if quantize:
                parts[self.denoiser_name] = self._quantized(diffusers, index, where, quantize, source)
            pipe = pipeline.from_pretrained(where, **parts, **source)
        except OSError as error:
            if "safetensors" in str(error):
                raise ValueError(
                    f"{pretrained} has no safetensors weights; set allow_pickle: true if you trust its pickled ones."
                ) from error
            raise ValueError(
                f"{pretrained} is neither a folder with a diffusers pipeline nor a hub repository that can be reached."
            ) from error
        if self.dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.float()  # this VAE overflows in float16
        return pipe

    def _quantized(self, diffusers, index, where, quantize, source):
        if not torch.cuda.is_available():
            raise ValueError(f"quantize: {quantize} needs a CUDA GPU; on a CPU leave it out.")
        if not isinstance(self.adapter, LoRA):
            raise ValueError(f"quantize: {quantize} freezes the denoiser; train it through adapter: LoRA.")
        bits = {
            "int8": {"load_in_8bit": True},
            "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": self.dtype},
        }
        config = diffusers.BitsAndBytesConfig(**bits[quantize])
        model = getattr(diffusers, index[self.denoiser_name][1])
        return model.from_pretrained(where, subfolder=self.denoiser_name, quantization_config=config, **source)

    def _tiny(self):
        """A tiny pipeline of this family with random weights, the same every time."""
        from lit_align.policies import tiny

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(tiny, self.pipeline_class)().to(self.dtype)

    def save(self, folder: str) -> None:
        """Writes what plain diffusers loads: LoRA weights for `load_lora_weights`, or a whole pipeline for
        `from_pretrained`.

        Under FSDP2 all ranks call it: weights are gathered and rank 0 writes.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
        from torch.distributed.fsdp import FSDPModule

        sharded = isinstance(self.denoiser, FSDPModule)
        state = self.denoiser.state_dict()
        if sharded:
            state = get_model_state_dict(
                self.denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            )
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        if isinstance(self.adapter, LoRA):
            self._save_lora(folder, state)
        elif not sharded:
            self.pipe.save_pretrained(folder)
        else:
            whole = type(self.denoiser).from_config(self.denoiser.config)
            whole.load_state_dict(state)
            setattr(self.pipe, self.denoiser_name, whole)
            self.pipe.save_pretrained(folder)
            setattr(self.pipe, self.denoiser_name, self.denoiser)

    def _save_lora(self, folder: str, state: dict) -> None:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.denoiser, state_dict=state))
        name = f"{self.denoiser_name}_lora"
        metadata = self.denoiser.peft_config["default"].to_dict()
        self.pipe.save_lora_weights(folder, **{f"{name}_layers": layers, f"{name}_adapter_metadata": metadata})

    # Encoders and decoder

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def train(self, mode: bool = True) -> "Policy":
        """Stays in eval mode."""
        return super().train(False)

    def _encoders(self) -> list[nn.Module]:
        return [e for name in self.encoder_names if (e := getattr(self.pipe, name)) is not None]

    def offload_encoders(self) -> None:
        """Keeps text encoders and VAE encoder on the CPU from now on (everything they were for is cached)."""
        self.encoder_device = torch.device("cpu")
        for part in (*(() if self.trains_text else self._encoders()), self.pipe.vae.encoder):
            part.to("cpu")

    def _place(self, *parts: nn.Module | None, encoder: bool = True) -> torch.device:
        device = self.encoder_device if encoder and self.encoder_device else self.device
        for part in parts:
            if part is not None:
                part.to(device)
        return device

    @property
    def trains_text(self) -> bool:
        return isinstance(self.adapter, Full) and self.adapter.text_encoder

    @abstractmethod
    def embed(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        """What the denoiser is conditioned on, by text encoders that lie on `device`: every tensor (B, ...)."""

    def condition(self, prompts: list[str]) -> dict[str, Tensor]:
        """Conditioning of prompts: a dict of tensors (B, ...). Text beyond the encoders' length is cut off, with a
        warning."""
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            cond = self.embed(prompts, self._place(*self._encoders(), encoder=not self.trains_text))
        return {k: v.to(self.device) for k, v in cond.items()}

    def summary(self, cond: dict[str, Tensor]) -> Tensor:
        """One vector per caption (B, D): the mean token embedding."""
        return cond["text"].float().mean(1)

    def unconditional(self) -> dict[str, Tensor]:
        """The conditioning that guidance leads away from, one row: by default the empty prompt."""
        return self.condition([""])

    def null(self, n: int) -> dict[str, Tensor]:
        """n rows of `unconditional`, computed once unless text encoders are trained."""
        if self._null is None or self.trains_text:
            self._null = self.unconditional()
        null, self._null = self._null, None if self.trains_text else self._null
        return {k: v.to(self.device).expand(n, *v.shape[1:]) for k, v in null.items()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents (..., C, h, w), sampled from the posterior, of images (..., 3, H, W) in [0, 1]."""
        if images.ndim > 4:
            return self.encode(images.flatten(0, -4)).unflatten(0, images.shape[:-3])
        vae = self.pipe.vae
        device = self._place(vae.encoder, vae.quant_conv)
        with torch.autocast(device.type, enabled=False):
            x_0 = vae.encode((images * 2 - 1).to(device, vae.dtype)).latent_dist.sample()
        return ((x_0.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of scaled latents; differentiable."""
        vae = self.pipe.vae
        device = self._place(vae.decoder, vae.post_quant_conv, encoder=False)
        self.calls["decode"] += len(latents)
        z = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        with torch.autocast(device.type, enabled=False):
            return (vae.decode(z.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    # The denoiser

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The denoiser's output at x_t (B, C, h, w), t (B,)."""

    def denoise(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor], guidance_scale: float = 1.0) -> Tensor:
        """The prediction (B, C, h, w) in float32, of the process's prediction type.

        Guidance w (arXiv 2207.12598 in diffusers' scale): null + w (cond - null), both in one forward; at 1 cond alone.
        """
        n, x = len(x_t), x_t.to(torch.float32 if isinstance(self.adapter, Full) else self.dtype)
        if guidance_scale != 1:
            null = self.null(n)
            x, t, cond = torch.cat([x, x]), torch.cat([t, t]), {k: torch.cat([null[k], v]) for k, v in cond.items()}
        self.calls["denoise"] += len(x)
        pred = self.predict(x, t, {k: v.to(x.dtype) for k, v in cond.items()}).float()
        if guidance_scale != 1:
            null, pred = pred.chunk(2)
            pred = null + guidance_scale * (pred - null)
        return pred

    def error(self, pred: Tensor, target: Tensor) -> Tensor:
        """Squared error of each sample, mean over its own axes, float32: (B,)."""
        return (pred.float() - target.float()).square().flatten(1).mean(1)

    # The reference p_ref, and older policies

    @property
    def has_reference(self) -> bool:
        return isinstance(self.adapter, LoRA) or REFERENCE in self._copies

    @property
    def in_reference(self) -> bool:
        """Whether `reference` is entered."""
        return self._active == REFERENCE

    def add_reference(self, moving: bool = False) -> None:
        """Makes the policy as it is now the reference; later calls change nothing. (With LoRA the base model is; a
        Frozen policy has none.)

        A `moving` reference can be refreshed; it is a second copy (with LoRA, a second adapter) and part of
        checkpoints.
        """
        self.reference_moves = self.reference_moves or moving
        if isinstance(self.adapter, Full) or (isinstance(self.adapter, LoRA) and self.reference_moves):
            self._keep(REFERENCE)

    def update_reference(self) -> None:
        """Moves the reference to where the policy is now."""
        if not self.reference_moves:
            raise RuntimeError("this reference does not move: call add_reference(moving=True) first.")
        self._refresh(REFERENCE, 0.0)

    def reference(self):
        """Inside, the policy is its reference p_ref."""
        if not self.has_reference:
            raise RuntimeError("a fully trained policy has no reference until add_reference() has been called.")
        return self._using(REFERENCE)

    def add_old(self, name: str = OLD) -> None:
        """Keeps the policy as it is now, besides the reference, as a copy (with LoRA, an adapter) that is part of
        checkpoints; later calls change nothing. A method that needs several gives them names."""
        if isinstance(self.adapter, Frozen):
            raise ValueError("a Frozen policy has no old one: choose adapter LoRA or Full.")
        self._keep(name)

    def update_old(self, decay: float = 0.0, name: str = OLD) -> None:
        """old <- decay old + (1 - decay) theta, over the trained parameters."""
        self._refresh(name, decay)

    def old(self, name: str = OLD):
        """Inside, the policy is the old one."""
        if name not in self._copies:
            raise RuntimeError(f"there is no old policy {name!r}: call add_old({name!r}) first.")
        return self._using(name)

    def _keep(self, name: str) -> None:
        if name in self._copies:
            return
        if self.trains_text:
            raise ValueError("a policy whose text encoders are trained has no reference: set text_encoder: false.")
        self._copies.add(name)
        if isinstance(self.adapter, LoRA):
            self.adapter.attach(self.denoiser, name)
            self._refresh(name, 0.0)
            return
        self._frozen[name] = copy.deepcopy(self.denoiser).requires_grad_(False)
        if self.compiles:
            self._frozen[name].compile()

    @torch.no_grad()
    def _refresh(self, name: str, decay: float) -> None:
        named = dict(self.denoiser.named_parameters())
        if isinstance(self.adapter, LoRA):
            pairs = [(named[n.replace(f".{name}.", ".default.")], p) for n, p in named.items() if f".{name}." in n]
        else:
            pairs = zip(named.values(), self._frozen[name].parameters())
        for now, then in pairs:
            then.mul_(decay).add_(now, alpha=1 - decay)

    def state_names(self) -> set[str]:
        """The parameters that a checkpoint must hold: what is trained, what is old, and a reference that moves."""
        kept = [f".{name}." for name in self._copies if name != REFERENCE or self.reference_moves]
        return {n for n, p in self.named_parameters() if p.requires_grad or any(name in n for name in kept)}

    @contextmanager
    def _using(self, name: str):
        before = self._active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, name: str | None) -> None:
        """Makes the policy what is kept under a name; None: itself."""
        if name == self._active:
            return
        if isinstance(self.adapter, LoRA):
            base = name == REFERENCE and not self.reference_moves  # the model without adapters
            self.adapter.use(self.denoiser, None if base else name or "default")
        else:
            for key in filter(None, (self._active, name)):
                self.denoiser, self._frozen[key] = self._frozen[key], self.denoiser
        self._active = name

    def shard(self, mesh) -> None:
        """Shards the denoiser (and its frozen copies) over a device mesh block by block (FSDP2); calling it again is
        harmless."""
        from torch.distributed.fsdp import FSDPModule, fully_shard

        for model in (self.denoiser, *self._frozen.values()):
            if not isinstance(model, FSDPModule):
                for block in self.blocks(model):
                    fully_shard(block, mesh=mesh)
                fully_shard(model, mesh=mesh, reshard_after_forward=True)  # a frozen copy has no backward to do it

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The parts of a denoiser that are gathered one after the other."""
        if self.denoiser_name == "transformer":
            return list(model.transformer_blocks)
        return [*model.down_blocks, model.mid_block, *model.up_blocks]
