"""InitNO: the initial noise is optimised until the first step's attention shows every object, apart from the others."""

import math

import numpy as np
import torch
from torch import Tensor

from lit_align.diffusion.state import State, randn_like
from lit_align.policies.attention import cells
from lit_align.steering.attention_loss import AttentionLoss, smoothed


def above_otsu(values: np.ndarray) -> np.ndarray:
    """Whether numbers in [0, 1] are above Otsu's threshold, the one of 256 levels with the largest variance between the
    two classes."""
    level = np.clip(values * 255, 0, 255).astype(int)
    share = np.bincount(level.ravel(), minlength=256) / values.size
    below, mean = share.cumsum(), (share * np.arange(256)).cumsum()
    between = (mean[-1] * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return level > between.argmax()


def foreground(maps: Tensor) -> Tensor:
    """The patch (h, w), boolean, of cells above Otsu's threshold that the maximum of a map lies in."""
    from scipy import ndimage

    values = maps.detach().float().cpu().numpy()
    highest = np.unravel_index(values.argmax(), values.shape)
    above = above_otsu(values)
    above[highest] = True
    labels, _ = ndimage.label(above)
    return torch.from_numpy(labels == labels[highest]).to(maps.device)


class InitNO(AttentionLoss):
    """Guo et al., CVPR 2024 (arXiv 2404.04650), algorithm 1. Before the first step z becomes mu + exp(logvar / 2) z,
    where Adam lowers L_cross + L_self + L_clean of the first step's maps, and after each update the divergence of
    N(mu, exp(logvar)) from N(0, 1) until it is at most 0.001. Five draws of z get ten updates each; if none has L_cross
    < 0.2 and L_self < 0.3, the one nearest to it gets fifty. Later steps follow the gradient of L_cross, and are
    refined at two of them by L_cross + L_self + (L_clean + L_align) / 10.

    L_cross is 1 - the smallest maximum of objects' maps; L_self the overlap of the self-attention of these maxima, over
    pairs of objects; L_clean what of a map lies outside its main patch; L_align the distance from the maps' running
    mean.

    Args:
        objects, attributes: words of the prompt, see PhraseHook.
        rounds: draws of z.
        updates, final_updates: of each draw, and of the best one.
        lr: of Adam.
        cross, apart: L_cross and L_self to be reached.
        step_size: of later steps, scaled by sqrt(l), with l falling from 1 to 1/2 over the run.
        end: the fraction of the run that is steered.
        refine_at: fractions of the run where steps are refined.
        refinements: gradient steps at most, at each of them.
        cell: latents to a side of a map's cell.
        padding: false leaves padding and special tokens out of the softmax.
    """

    def __init__(
        self,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        rounds: int = 5,
        updates: int = 10,
        final_updates: int = 50,
        lr: float = 0.01,
        cross: float = 0.2,
        apart: float = 0.3,
        step_size: float = 20.0,
        end: float = 0.5,
        refine_at: tuple[float, ...] = (0.2, 0.4),
        refinements: int = 20,
        cell: int = 4,
        padding: bool = True,
    ):
        super().__init__(objects, attributes, step_size, end, None, refinements, cell, padding)
        self.rounds, self.updates, self.final_updates, self.lr = rounds, updates, final_updates, lr
        self.cross, self.apart, self.refine_at = cross, apart, refine_at

    def judge_maps(self, maps, phrases, progress):
        raise TypeError("InitNO judges words' maps and self-attention together, in `terms`.")

    def check(self, policy, sampler):
        super().check(policy, sampler)
        if self.cell not in cells(policy, "self"):
            raise ValueError(f"InitNO: this denoiser has no self-attention with cell {self.cell}: set another.")

    def nfe(self, inside, steps):
        noise = self.rounds * self.updates + self.final_updates
        later = math.ceil(self.end * steps) + len(self.refine_at) * (self.refinements + 1)
        return inside + 2 * (noise + later)

    def on_init(self, policy, state):
        super().on_init(policy, state)
        state.extras[self]["mean"] = [{} for _ in state.prompts]  # of each particle: the running mean of its maps

    def record(self, call):
        if call.cell == self.cell:
            words = call.words().mean(1) if call.kind != "self" else None
            patches = call.patches().mean(1) if call.kind != "cross" else None
            return words, patches

    def maps(self, policy, x, t, cond):
        """Of each particle, words' maps (h, w, L) and self-attention (h, w, h, w)."""
        with policy.attention(record=self.record) as layers:
            policy.denoise(x, t, cond)
        h, w = (-(-side // self.cell) for side in x.shape[-2:])
        words, patches = (torch.stack([m for m in column if m is not None]).mean(0) for column in zip(*layers))
        return list(zip(words.unflatten(1, (h, w)), patches.view(-1, h, w, h, w)))

    def terms(self, policy, state: State, maps: tuple[Tensor, Tensor], p: int) -> tuple[Tensor, ...]:
        """L_cross, L_self, L_clean, and the objects' maps (n, h, w)."""
        words = self.softmaxed(policy, maps[0], state.texts[p])
        phrases = state.extras[self]["phrases"][p]
        shown = torch.stack([smoothed(words[..., phrase.object].mean(-1)) for phrase in phrases])
        cross = (1 - shown.amax((1, 2)).amin()).clamp(min=0)
        w = shown.shape[-1]
        around = [smoothed(maps[1][k // w, k % w]) for k in shown.flatten(1).argmax(1).tolist()]
        pairs = [(a, b) for k, a in enumerate(around) for b in around[:k]]
        overlap = [torch.minimum(a, b).sum() / ((a + b).sum() + 1e-6) for a, b in pairs]
        apart = torch.stack(overlap).mean() if overlap else 0 * cross
        clean = 0 * cross
        for one in shown:
            front = foreground(one)
            back = torch.where(front, 0.0, one).amax()
            clean = clean + torch.where(back > torch.where(front, one, 1.0).amin(), back, 0 * back)
        return cross, apart, clean, shown

    def of_noise(self, policy, state, maps, p):
        cross, apart, clean, _ = self.terms(policy, state, maps, p)
        return cross + torch.where(cross > 0.5, 0 * apart, apart) + clean, cross, apart

    def of_step(self, policy, state, maps, p):
        cross, apart, _, shown = self.terms(policy, state, maps, p)
        self.align(state, shown, p)
        return cross, cross, apart

    def of_refinement(self, policy, state, maps, p):
        cross, apart, clean, shown = self.terms(policy, state, maps, p)
        return cross + apart + (clean + self.align(state, shown, p)) / 10, cross, apart

    def align(self, state: State, shown: Tensor, p: int) -> Tensor:
        """L_align of one particle, whose running mean moves on."""
        kept, now = state.extras[self]["mean"][p], shown.detach()
        kept["maps"] = 0.9 * kept["maps"] + 0.1 * now if kept else now
        return (shown - kept["maps"]).abs().mean((1, 2)).sum()

    def before_step(self, policy, state, sampler):
        state.inside(self).before_step(policy, state, sampler)
        every = torch.arange(len(state.x), device=state.x.device)
        if state.i == 0:
            state.x = torch.cat([self.optimised(policy, state.part(every[p : p + 1])) for p in range(len(every))])
        if state.i >= self.end * state.steps:
            return
        size = self.step_size * math.sqrt(1 - 0.5 * state.i / max(state.steps - 1, 1))
        _, cross, apart, gradient = self.gradient(policy, state, every, self.of_step)
        rows = ((cross > self.cross) | (apart > self.apart)).nonzero().flatten()
        if len(rows) and any(state.i == round(at * state.steps) for at in self.refine_at):
            self.refine(policy, state, rows, size)
            gradient[rows] = self.gradient(policy, state, rows, self.of_step)[-1]
        state.x = state.x - size * gradient

    def refine(self, policy, state: State, rows: Tensor, size: float) -> None:
        state.x = state.x.clone()
        for _ in range(self.refinements):
            _, cross, apart, gradient = self.gradient(policy, state, rows, self.of_refinement)
            far = (cross > self.cross) | (apart > self.apart)
            rows, gradient = rows[far], gradient[far]
            if not len(rows):
                break
            state.x[rows] -= size * gradient

    def optimised(self, policy, state: State) -> Tensor:
        """The initial noise (1, ...) of one particle."""
        tried, z = [], state.x
        for _ in range(self.rounds):
            x, distance = self.descend(policy, state, z, self.updates)
            if not distance:
                return x
            tried.append((distance, len(tried), z))
            z = randn_like(z, state.generators)
        return self.descend(policy, state, min(tried)[2], self.final_updates)[0] if tried else z

    def descend(self, policy, state: State, z: Tensor, updates: int) -> tuple[Tensor, float]:
        """mu + exp(logvar / 2) z after at most so many updates, and L_cross + L_self; 0 where they are as wanted."""
        one, mu, logvar = torch.zeros(1, dtype=torch.long, device=z.device), torch.zeros_like(z), torch.zeros_like(z)
        adam, distance = torch.optim.Adam([logvar, mu], self.lr, eps=1e-3), 1.0
        for _ in range(updates):
            spread = (logvar / 2).exp() * z
            state.x = mu + spread
            _, cross, apart, gradient = self.gradient(policy, state, one, self.of_noise)
            if cross < self.cross and apart < self.apart:
                return state.x, 0.0
            distance = (cross + apart).item() + (1.0 if apart <= 1e-6 else 0.0)
            mu.grad, logvar.grad = gradient, gradient * spread / 2
            adam.step()
            for _ in range(1000):  # back to where N(mu, exp(logvar)) is nearly N(0, 1)
                if (logvar.exp() + mu.square() - 1 - logvar).mean() / 2 <= 0.001:
                    break
                mu.grad, logvar.grad = mu / mu.numel(), (logvar.exp() - 1) / (2 * mu.numel())
                adam.step()
        return mu + (logvar / 2).exp() * z, distance
