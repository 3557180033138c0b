"""SPO's step-aware preference model: a CLIP score that is conditioned on the timestep."""

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import fetch
from lit_align.rewards.clip import load_clip, pixels, text_features
from lit_align.rewards.step_reward import StepReward


def sinusoids(t: Tensor, width: int) -> Tensor:
    """The timestep embedding (B, width): cosines, then sines (arXiv 2212.09748's)."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class StepAwarePreference(StepReward):
    """Liang et al. 2024, arXiv 2406.04314, section 3.2: logit_scale x cosine of CLIP's text and image features; the
    image is the decoded estimate of x_0, and every layer of the image tower is modulated by the timestep (adaLN).

    Untrained modulation is the identity: the score is then CLIP's. Weights have the released models' names, so those
    load unchanged.

    Args:
        pretrained: hub id or folder of a transformers CLIPModel.
        tokenizer: hub id or folder of its tokenizer.
        checkpoint: a file of the released format or written by `save`, local or `<owner>/<name>/<file>` on the hub.
    """

    needs_x0 = True
    text_limit = 77
    artefact = "`SPO-Diffusion-Models/Step-Aware_Preference_Models`, or what `spm_sd15` and `spm_sdxl` train"
    licence = "not known; Apache-2.0 on the cards of the owner's SPO models"
    scale = "logit_scale x cosine, as PickScore's"
    blind_to = "what lies outside the central square; counts, positions, which object has which attribute"

    def __init__(
        self,
        pretrained: str = "yuvalkirstain/PickScore_v1",
        checkpoint: str | None = None,
        tokenizer: str | None = None,
    ):
        super().__init__()
        self.model, self.tokenizer = load_clip(pretrained, tokenizer)
        vision, d = self.model.vision_model, self.model.config.vision_config.hidden_size
        self.model.t_embedder = nn.Module()
        self.model.t_embedder.mlp = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))
        vision.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))  # shift, scale
        nn.init.zeros_(vision.adaLN_modulation[1].weight)
        nn.init.zeros_(vision.adaLN_modulation[1].bias)
        vision.post_layernorm.register_forward_hook(lambda _, __, x: self._modulated(x, *self.modulation[-1]))
        for i, layer in enumerate(vision.encoder.layers):
            self._condition(i, layer, d)
        self.modulation: list[tuple[Tensor, ...]] = []  # of the current forward, per layer; last: final
        if checkpoint:
            self._load(fetch(checkpoint))

    def _condition(self, i: int, layer: nn.Module, d: int) -> None:
        """Adds adaLN to a layer: shift, scale and gate of its attention, then of its MLP."""
        layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(layer.adaLN_modulation[1].bias)
        with torch.no_grad():
            layer.adaLN_modulation[1].bias.view(6, d)[[2, 5]] = 1  # gates open
        layer.layer_norm1.register_forward_hook(lambda _, __, x: self._modulated(x, *self.modulation[i][:2]))
        layer.self_attn.register_forward_hook(lambda _, __, out: (out[0] * self.modulation[i][2][:, None], *out[1:]))
        layer.layer_norm2.register_forward_hook(lambda _, __, x: self._modulated(x, *self.modulation[i][3:5]))
        layer.mlp.register_forward_hook(lambda _, __, x: x * self.modulation[i][5][:, None])

    @staticmethod
    def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        shift, scale = (v if x.ndim == 2 else v[:, None] for v in (shift, scale))
        return x * (1 + scale) + shift

    def _load(self, path: str) -> None:
        from safetensors.torch import load_file

        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        missing, _ = self.load_state_dict(state, strict=False)
        if missing:
            raise ValueError(f"{path} lacks {missing[0]}: it holds no step-aware preference model of this CLIP.")

    def save(self, folder: str) -> None:
        """Writes `<folder>/step_aware.safetensors`."""
        from safetensors.torch import save_file

        os.makedirs(folder, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.state_dict().items()}
        save_file(state, os.path.join(folder, "step_aware.safetensors"))

    def forward(self, policy, x_t, x_0, t, prompts):
        model = self.model
        time = t.float() * (policy.process.num_train_timesteps if policy.process.prediction == "flow" else 1)
        e = model.t_embedder.mlp(sinusoids(time.clamp(min=0), 256))  # (B, D)
        vision = model.vision_model
        self.modulation = [layer.adaLN_modulation(e).chunk(6, 1) for layer in vision.encoder.layers]
        self.modulation.append(vision.adaLN_modulation(e).chunk(2, 1))
        image = model.get_image_features(pixel_values=pixels(model, policy.decode(x_0))).pooler_output
        text = text_features(self, prompts)
        return model.logit_scale.exp() * F.cosine_similarity(image, text)
