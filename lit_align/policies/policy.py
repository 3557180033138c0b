"""The policy p_theta: one interface over the parts of a diffusers pipeline, whatever the model family."""

from collections import Counter
from typing import Literal
from zlib import crc32

import torch
from torch import Tensor, nn

from lit_align.diffusion.conditioning import cast_conditioning, cat_conditioning
from lit_align.policies import codec, loading, lora_files, refusals, saving
from lit_align.policies.adapters import Adapter, Frozen, Full, LoRA
from lit_align.policies.attention import Record, Replace, attention
from lit_align.policies.family import Family
from lit_align.policies.versions import OLD, REFERENCE, Versions

NULL = "null."  # prefix of a row's own conditioning that guidance leads away from


class Policy(Family):
    """Base of the model families, which override what Family says: how a prompt is encoded, how the denoiser is called.

    Only what may be trained, its frozen copies and the process are submodules. Text encoders and VAE stay in
    `self.pipe`, the diffusers pipeline: no optimizer, checkpoint or sharding strategy sees them, and they follow the
    denoiser's device. Everything is always in eval mode: a policy has no dropout, so that a recorded step has ratio 1.

    Args:
        pretrained: hub id or folder of a diffusers pipeline, or a single .safetensors file; "tiny" for random weights
            of a tiny model of the family.
        adapter: LoRA, Frozen or Full (the default).
        dtype: of frozen weights; what is trained is float32.
        resolution: side of a square image, or height and width, pixels (default: the model's own).
        gradient_checkpointing: recompute the denoiser's activations in backward.
        compile: run the denoiser through torch.compile (the first steps take minutes).
        quantize: load the frozen denoiser in 8 or 4 bits (bitsandbytes; needs CUDA and LoRA).
        vae: hub id or folder of another VAE, for instance one that is safe in float16.
        variant, revision: which files of the hub repository.
        allow_pickle: accept weights that are pickled (.bin), which can run code when loaded.
        scheduler: options that replace those of the checkpoint's scheduler_config.json, for instance
            {prediction_type: v_prediction}.
        single_file_config: for a single file: hub id or folder of a diffusers pipeline of the family, from which
            configs and tokenizers are taken, and whatever weights the file lacks; or a folder with its tokenizers
            alone (default: configs that ship, and the hub's tokenizers).
    """

    def __init__(
        self,
        pretrained: str,
        adapter: Adapter | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        resolution: int | tuple[int, int] | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        quantize: Literal["int8", "int4"] | None = None,
        vae: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
        scheduler: dict | None = None,
        single_file_config: str | None = None,
        lora: str | None = None,
    ):
        super().__init__()
        self.adapter, self.dtype = adapter or Full(), getattr(torch, dtype)
        files = {"variant": variant, "revision": revision, "single_file_config": single_file_config}
        self.pipe = loading.load_pipeline(
            self, pretrained, quantize=quantize, vae=vae, allow_pickle=allow_pickle, **files
        )
        loading.override_scheduler(self.pipe, scheduler)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        self.denoiser = getattr(self.pipe, self.denoiser_name)
        self._frozen = nn.ModuleDict()  # name -> version, of a policy that is trained in full
        self.versions = Versions(self)
        self.reference_moves = False  # whether the reference can be updated
        self.encoder_device: torch.device | None = None  # where encoders run; None: where the denoiser is
        self._null: dict[str, Tensor] | None = None
        self.calls = Counter()  # see Budget
        self.resolution = resolution or self.default_resolution()
        self.height, self.width = (self.resolution,) * 2 if isinstance(self.resolution, int) else self.resolution
        self.latent_shape = self.shape()
        refusals.refuse_parts(self, pretrained)
        refusals.refuse_sizes(self)
        config = {**self.pipe.scheduler.config, "_class_name": type(self.pipe.scheduler).__name__}
        self.process = self.make_process(config)
        if lora:
            lora_files.start_from(self, lora)
        else:
            self.adapter.prepare(self)
        if gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.compiles = compile
        if compile:
            self.denoiser.compile()  # in place: names and files stay as they are
        self.fingerprint = f"{type(self).__name__} {pretrained} {revision} {variant} {vae} {dtype} {self.resolution}"
        self.fingerprint += "".join(f" {given}" for given in (single_file_config, lora) if given)

    def save(self, folder: str, format: Literal["diffusers", "kohya"] = "diffusers", merge: bool = False) -> None:
        """Writes LoRA weights for `load_lora_weights`, or in kohya's format; or a whole pipeline for `from_pretrained`.
        With `merge` a LoRA is added to the denoiser's weights and a whole pipeline is written. Under FSDP2 all ranks
        call it."""
        saving.save(self, folder, format, merge)

    def save_lora(self, folder: str) -> None:
        """Writes the denoiser's adapter "default" for `load_lora_weights`, whoever attached it."""
        saving.save_lora(self, folder)

    # Encoders and decoder

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def train(self, mode: bool = True) -> "Policy":
        """Stays in eval mode."""
        return super().train(False)

    @property
    def trains_text(self) -> bool:
        return isinstance(self.adapter, Full) and self.adapter.text_encoder

    def _encoders(self) -> list[nn.Module]:
        return [e for name in self.encoder_names if (e := getattr(self.pipe, name)) is not None]

    def offload_encoders(self) -> None:
        """Keeps text encoders and the VAE's encoder on the CPU from now on (all they were for is cached)."""
        self.encoder_device = torch.device("cpu")
        for part in (*(() if self.trains_text else self._encoders()), self.pipe.vae.encoder):
            part.to("cpu")

    def _place(self, parts: list[nn.Module], encoder: bool = True) -> torch.device:
        device = self.encoder_device if encoder and self.encoder_device else self.device
        for part in parts:
            part.to(device)
        return device

    def condition(self, prompts: list[str], columns: dict[str, list] | None = None) -> dict[str, Tensor]:
        """Conditioning of prompts: a dict of tensors (B, ...). Text beyond the encoders' length is cut off, with a
        warning. Of the further columns of their rows, those that the family `reads` are taken."""
        given = {name: (columns or {}).get(name) for name in self.reads}
        if missing := [name for name, cells in given.items() if cells is None]:
            raise ValueError(
                f"{type(self).__name__} edits images and needs the column `{missing[0]}` with them beside each prompt; "
                f"the rows have {', '.join(columns or {}) or 'no further columns'}."
            )
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            device = self._place(self._encoders(), encoder=not self.trains_text)
            cond = self.embed(list(prompts), device, **given)
        return {k: v.to(self.device) for k, v in cond.items()}

    def keys(self, prompts: list[str], columns: dict[str, list] | None = None) -> list[str]:
        """What tells the rows' conditioning apart: the prompt, and a checksum of the images that are edited."""
        marks = [""] * len(prompts)
        for name in self.reads:
            marks = [f"{m} {crc32(x.cpu().numpy().tobytes())}" for m, x in zip(marks, columns[name], strict=True)]
        return [prompt + mark for prompt, mark in zip(prompts, marks)]

    def null(self, n: int) -> dict[str, Tensor]:
        """n rows of `unconditional`, computed once unless text encoders are trained."""
        if self._null is None or self.trains_text:
            self._null = self.unconditional()
        null, self._null = self._null, None if self.trains_text else self._null
        return {k: v.to(self.device).expand(n, *v.shape[1:]) for k, v in null.items()}

    def null_of(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """What guidance leads away from in the rows of `cond`: `null`, with what of it is the row's own."""
        own = {name.removeprefix(NULL): v for name, v in cond.items() if name.startswith(NULL)}
        rest = {name: v for name, v in cond.items() if not name.startswith(NULL)}
        return rest | (own or self.null(len(next(iter(rest.values())))))

    @torch.no_grad()
    def encode(self, images: Tensor, mode: bool = False) -> Tensor:
        """Scaled latents (N, C, h, w) of images (N, 3, H, W) in [0, 1], or (N, C, f, h, w) of videos (N, F, 3, H, W):
        sampled from the posterior, or its mode."""
        if images.ndim != 1 + self.image_axes:
            one = "images (N, 3, H, W)" if self.image_axes == 3 else "videos (N, F, 3, H, W)"
            raise ValueError(f"encode takes {one}; it was given a tensor of shape {tuple(images.shape)}.")
        vae = self.pipe.vae
        device = self._place(codec.encoder_parts(vae))
        with torch.autocast(device.type, enabled=False):
            z = self.vae_encode((images * 2 - 1).to(device, vae.dtype), mode)
        return codec.normalize(z, self.statistics()).to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), or videos (B, F, 3, H, W), in [0, 1] of scaled latents; differentiable."""
        vae = self.pipe.vae
        device = self._place(codec.decoder_parts(vae), encoder=False)
        self.calls["decodes"] += len(latents)
        z = codec.denormalize(latents, self.statistics())
        with torch.autocast(device.type, enabled=False):
            return (self.vae_decode(z.to(vae.dtype)).float() / 2 + 0.5).clamp(0, 1)

    # The denoiser

    def denoise(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor], guidance_scale: float = 1.0) -> Tensor:
        """The prediction (B, ...) in float32, of the process's prediction type; with a guidance scale other than 1, by
        `guided`, both predictions in one forward."""
        if guidance_scale != 1:
            return self.guided(*self.branches(x_t, t, cond), guidance_scale)
        x = x_t.to(torch.float32 if isinstance(self.adapter, Full) else self.dtype)
        pred = self.predict(x, t, cast_conditioning(cond, x.dtype)).float()
        self.count(pred)
        return pred

    def branches(self, x_t: Tensor, t: Tensor, cond: dict, null: dict | None = None) -> tuple[Tensor, Tensor]:
        """The predictions under `null` (default: the policy's own) and under `cond`, in one forward."""
        null = self.null_of(cond) if null is None else null
        cond = {k: v for k, v in cond.items() if not k.startswith(NULL)}
        both = cat_conditioning([cond | null, cond])
        return self.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)

    def count(self, pred: Tensor) -> None:
        """Counts a forward that gave `pred` (B, ...), and its backward once there is one."""
        n = len(pred)
        self.calls["nfe_forward"] += n
        if pred.requires_grad:
            pred.register_hook(lambda _: self.calls.update(nfe_backward=n))

    def attention(self, record: Record | None = None, replace: Replace | None = None):
        """Inside, the denoiser's attention is read and replaced; see `attention.attention`."""
        return attention(self, record, replace)

    # The reference p_ref, and older policies

    @property
    def has_reference(self) -> bool:
        return isinstance(self.adapter, LoRA) or REFERENCE in self.versions.names

    @property
    def in_reference(self) -> bool:
        """Whether `reference` is entered."""
        return self.versions.active == REFERENCE

    def add_reference(self, moving: bool = False) -> None:
        """Makes the policy as it is now the reference; later calls change nothing. (With LoRA the base model is; a
        Frozen policy has none.)

        A `moving` reference can be updated; it is a second copy (with LoRA, a second adapter) and part of checkpoints.
        """
        self.reference_moves = self.reference_moves or moving
        if isinstance(self.adapter, Full) or (isinstance(self.adapter, LoRA) and self.reference_moves):
            self.versions.add(REFERENCE)

    def update_reference(self, decay: float = 0.0) -> None:
        """reference <- decay reference + (1 - decay) theta, over the trained parameters."""
        if not self.reference_moves:
            raise RuntimeError("this reference does not move: call add_reference(moving=True) first.")
        self.versions.update(REFERENCE, decay)

    def reference(self):
        """Inside, the policy is its reference p_ref."""
        if not self.has_reference:
            raise RuntimeError("a fully trained policy has no reference until add_reference() has been called.")
        return self.versions.use(REFERENCE)

    def add_old(self, name: str = OLD) -> None:
        """Keeps the policy as it is now, besides the reference, as a copy (with LoRA, an adapter) that is part of
        checkpoints; later calls change nothing. A method that needs several gives them names."""
        if isinstance(self.adapter, Frozen):
            raise ValueError("a Frozen policy has no old one: choose adapter LoRA or Full.")
        self.versions.add(name)

    def add_frozen(self, name: str, source: str) -> None:
        """Keeps the weights of a file or folder under a name, for `old`: with LoRA those of a LoRA, else of a pipeline.
        They are in no checkpoint."""
        self.versions.load(name, source)

    def update_old(self, decay: float = 0.0, name: str = OLD) -> None:
        """old <- decay old + (1 - decay) theta, over the trained parameters."""
        self.versions.update(name, decay)

    def old(self, name: str = OLD):
        """Inside, the policy is the old one."""
        if name not in self.versions.names:
            raise RuntimeError(f"there is no old policy {name!r}: call add_old({name!r}) first.")
        return self.versions.use(name)

    def state_names(self) -> set[str]:
        """The parameters that a checkpoint must hold: what is trained, what is old, and a reference that moves."""
        names = self.versions.names - self.versions.loaded
        kept = [f".{name}." for name in names if name != REFERENCE or self.reference_moves]
        return {n for n, p in self.named_parameters() if p.requires_grad or any(name in n for name in kept)}

    def shard(self, mesh) -> None:
        """Shards the denoiser (and its frozen copies) over a device mesh block by block (FSDP2); calling it again is
        harmless."""
        saving.shard([self.denoiser, *self._frozen.values()], self.blocks, mesh)
