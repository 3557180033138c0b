"""The reward r(c, x): higher is better, one or several numbers per image."""

import os
from abc import abstractmethod
from collections.abc import Sized
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.diffusion.state import select_rows


class Reward(nn.Module):
    """A reward model or rule.

    With frozen weights it has no dropout and scores in float32, whatever the precision of the run.

    Attributes: `name` labels it in logs (`val/reward/<name>`); `differentiable` is True if gradients reach the images;
    `names` labels the R numbers of a reward that gives several; `masks` is True if a score can be NaN, which means that
    the image could not be scored, and that training leaves it out; `together` is True if an image's score depends on
    the other images of the call; `videos` is True if it scores whole videos (N, F, 3, H, W); `truncated` counts the
    prompts so far whose end it did not read (None: it has scored none, or does not count). The others say what a user
    must know of a reward, and `docs/rewards.md` lists them.
    """

    name: str
    differentiable: bool
    names: tuple[str, ...] = ()
    masks = False
    together = False
    videos = False
    truncated: int | None = None
    artefact = ""  # the published weights it loads: hub id or file
    licence = ""  # of the artefact
    scale = ""  # its unit and usual range
    text_limit: int | None = None  # tokens of a prompt that are read, special ones included; None: all
    blind_to = ""  # what it does not see

    @property
    def frozen(self) -> bool:
        """True if nothing trains its weights."""
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> "Reward":
        return super().train(mode and not self.frozen)

    def __call__(self, images: Tensor, *args, **kwargs) -> Any:
        if not self.frozen:
            return super().__call__(images, *args, **kwargs)
        with torch.autocast(images.device.type, enabled=False):
            return super().__call__(images.float(), *args, **kwargs)

    @abstractmethod
    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        """Scores images (N, 3, H, W) in [0, 1] against their prompts: (N,) or (N, R) on the images' device.

        A reward that needs further columns of the data names them as keyword arguments
        (`def forward(self, images, prompts, include)`), and gets each as a list of N.
        """

    @property
    def columns(self) -> dict[str, bool]:
        """Columns of the data that `forward` takes -> True if required (no default)."""
        parameters = list(signature(self.forward).parameters.values())[2:]
        return {p.name: p.default is Parameter.empty for p in parameters if p.kind is not Parameter.VAR_KEYWORD}

    def components(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        """Per-image scores, (N,) or (N, R), from which `combine` computes the reward."""
        return self(images, prompts, **columns)

    def combine(self, components: Tensor) -> Tensor:
        """The reward from the components of all images that are compared."""
        return components

    def save(self, folder: str) -> dict:
        """Writes the weights to a folder, in the format that the class loads, and returns the arguments that load them
        (by default `checkpoint`, if the class has it): `<folder>/reward.safetensors`."""
        from safetensors.torch import save_model

        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, "reward.safetensors")
        save_model(self, file)
        return {"checkpoint": file} if "checkpoint" in signature(type(self).__init__).parameters else {}

    def embed(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, 3, H, W) in [0, 1], for methods that learn a value or a reward from them;
        differentiable. By default the image at 16 x 16 pixels."""
        return F.adaptive_avg_pool2d(images.float(), 16).flatten(1)


def components(reward: Reward, images: Tensor, rows: dict) -> Tensor:
    """`reward.components` of images (N, 3, H, W) and their rows ({"prompt", "columns"}), in float32.

    Raises ValueError if the rows lack a column, or if the reward does not give one number (or R numbers) per image.
    """
    refuse_videos([reward], images.ndim == 5)
    available = rows.get("columns", {})
    if missing := [name for name, needed in reward.columns.items() if needed and name not in available]:
        raise ValueError(missing_column(reward, missing[0], available))
    columns = {name: available[name] for name in reward.columns if name in available}
    return checked(reward, reward.components(images, rows["prompt"], **columns), len(images), len(reward.names))


def checked(reward: Reward, score: Any, n: int, several: int = 0) -> Tensor:
    """What a reward gave for n images, in float32: (N,), or (N, R) where it may give `several` numbers. Raises
    ValueError if it is anything else."""
    if torch.is_tensor(score) and score.shape == (n, 1) and not several:
        score = score.squeeze(1)
    if torch.is_tensor(score) and (score.shape == (n,) or (several and score.shape == (n, several))):
        return score.float()
    gave = f"a {type(score).__name__}"
    if isinstance(score, Tensor | np.ndarray):
        gave += f" of shape {tuple(score.shape)}"
    elif isinstance(score, Sized):
        gave += f" of length {len(score)}"
    wanted = f"one number per image, a tensor of shape ({n},)"
    wanted += f", or {several} numbers, of shape ({n}, {several})" if several else ""
    raise ValueError(f"the reward {reward.name} must give {wanted}; it gave {gave}.")


def refuse_masks(module: nn.Module, who: str) -> None:
    """Raises ValueError if a reward within the module leaves out images that could not be scored."""
    if masked := [part for part in module.modules() if isinstance(part, Reward) and part.masks]:
        raise ValueError(
            f"{who} needs a score for every image, and {type(masked[-1]).__name__} leaves out those that could not be "
            "scored: set its on_failure to stop."
        )


def refuse_videos(rewards, videos: bool) -> None:
    """Raises ValueError if the samples are videos and one of the rewards scores images."""
    if blind := [reward for reward in rewards if videos and not reward.videos]:
        part = f"{{class_path: {type(blind[0]).__name__}}}"
        raise ValueError(
            f"the reward {blind[0].name} scores images, and the policy makes videos: put it into Frames, which scores "
            f"frames of them ({{class_path: Frames, init_args: {{reward: {part}}}}})."
        )


def missing_column(reward: Reward, name: str, available) -> str:
    """Error message for data that lacks a column."""
    names = ", ".join(available) or "none besides the prompt"
    return f"the reward {reward.name} needs the column `{name}`; the data has {names}: add it to the file of prompts."


def judge(reward: Reward, policy, latents: Tensor, rows: dict, size: int | None = None) -> Tensor:
    """Decodes latents (N, ...) and scores the images with their rows, `size` at a time (None: all at once): (N,) or (N,
    R), float32. A reward that compares images is given all decoded images at once. Counted in `policy.calls`."""
    policy.calls["reward_calls"] += len(latents)
    parts = torch.arange(len(latents)).split(size or len(latents))
    if reward.together:
        images = torch.cat([policy.decode(latents[p]) for p in parts])
        return reward.combine(components(reward, images, rows))
    scores = [components(reward, policy.decode(latents[p]), select_rows(rows, p.tolist())) for p in parts]
    return reward.combine(torch.cat(scores))
