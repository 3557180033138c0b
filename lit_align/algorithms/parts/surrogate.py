"""A reward model fitted to queries of a black-box reward, with a bonus for uncertainty."""

from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward


def head(size: int) -> nn.Sequential:
    """LAION's aesthetic predictor with a relu after each hidden layer: (B, size) -> 16 features -> (B, 1)."""
    widths, layers = (size, 1024, 128, 64, 16), []
    for a, b, p in zip(widths, widths[1:], (0.2, 0.2, 0.1, 0.0)):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(p)]
    return nn.Sequential(*layers, nn.Linear(16, 1))


class Surrogate(Reward):
    """SEIKO's optimistic surrogate r-hat + bonus (arXiv 2402.16359) of a black-box reward r, differentiable.

    Its inputs are `features.embed` of the image and the caption's mean embedding. With phi the 16 features before its
    last layer,

        ucb:        r-hat + min(alpha sqrt(phi^T (sum_n phi_n phi_n^T + ridge I)^-1 phi), max_bonus), over queries n;
        bootstrap:  the largest of four surrogates, each fitted to a resample of the queries.

    The released code has no relus, and the features' covariance in place of the sum: its bonus does not fall with
    queries. Queries, weights and the inverse are in the checkpoint.

    Args:
        reward: r, kept as `queried`.
        policy: gives the caption embeddings.
        features: gives the image embeddings (default: `reward`).
        optimism: ucb or bootstrap.
        alpha, ridge, max_bonus: of the bonus; max_bonus in units of r.
        epochs, lr, batch_size: of a fit, by Adam on the squared error.
    """

    name, differentiable = "surrogate", True

    def __init__(
        self,
        reward: Reward,
        policy: Policy,
        features: Reward | None = None,
        optimism: Literal["ucb", "bootstrap"] = "ucb",
        alpha: float = 1e-2,
        ridge: float = 1e-3,
        max_bonus: float = 10.0,
        epochs: int = 300,
        lr: float = 1e-3,
        batch_size: int = 512,
    ):
        super().__init__()
        self.videos = reward.videos
        self.queried, self._policy = reward.eval().requires_grad_(False), (policy,)  # a tuple, so it is no submodule
        self.features = (features or reward).eval().requires_grad_(False)
        self.alpha, self.ridge, self.max_bonus = alpha, ridge, max_bonus
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        with torch.no_grad():
            size = self.describe(torch.zeros(1, *policy.image_shape()), [""]).shape[1]
        self.heads = nn.ModuleList(head(size) for _ in range(4 if optimism == "bootstrap" else 1))
        self.heads.eval().requires_grad_(False)
        self.register_buffer("x", torch.empty(0, size), persistent=False)
        self.register_buffer("y", torch.empty(0), persistent=False)
        self.register_buffer("inverse", torch.eye(16) / ridge, persistent=False)

    def train(self, mode: bool = True) -> "Surrogate":
        """Stays in eval mode; only `fit` uses dropout."""
        return super().train(False)

    def describe(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The surrogate's inputs (B, D) for images and prompts."""
        with torch.no_grad():
            text = self._policy[0].summary(self._policy[0].condition(prompts)).float()
        return torch.cat([self.features.embed(images).float(), text.to(images.device)], 1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        x = self.describe(images, prompts)
        with torch.autocast(x.device.type, enabled=False):
            if len(self.heads) > 1:
                return torch.cat([head(x) for head in self.heads], 1).amax(1)
            phi = self.heads[0][:-1](x)
            return self.heads[0][-1](phi).squeeze(1) + self.bonus(phi)

    def bonus(self, phi: Tensor) -> Tensor:
        """Bonus (B,) from features (B, 16)."""
        square = ((phi @ self.inverse) * phi).sum(1)
        return (self.alpha * square.clamp(min=1e-12).sqrt()).clamp(max=self.max_bonus)

    def fit(self, x: Tensor, y: Tensor) -> None:
        """Adds queries x (N, D) with rewards y (N,) and trains the current weights on all queries so far."""
        self.x, self.y = torch.cat([self.x, x]), torch.cat([self.y, y])
        n, device = len(self.y), self.x.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(n)  # the same on every rank
            with torch.autocast(device.type, enabled=False):
                self._fit([torch.randint(n, (n,)) if len(self.heads) > 1 else torch.arange(n) for _ in self.heads])
        with torch.no_grad():
            phi = self.heads[0][:-1](self.x)
            self.inverse = (phi.T @ phi + self.ridge * torch.eye(16, device=device)).inverse()

    def _fit(self, rows: list[Tensor]) -> None:
        self.heads.train().requires_grad_(True)
        optimizer = torch.optim.Adam(self.heads.parameters(), self.lr)
        for _ in range(self.epochs):
            for part in torch.randperm(len(self.y)).split(self.batch_size):
                batches = [indices[part] for indices in rows]
                errors = [head(self.x[i]).squeeze(1) - self.y[i] for head, i in zip(self.heads, batches)]
                loss = torch.stack(errors).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.heads.eval().requires_grad_(False)
        for p in self.heads.parameters():
            p.grad = None

    def get_extra_state(self) -> tuple:
        return self.x, self.y, self.inverse, self.heads.state_dict()  # one leaf of a sharded checkpoint

    def set_extra_state(self, state: tuple) -> None:
        self.x, self.y, self.inverse = (value.to(self.x.device) for value in state[:3])
        self.heads.load_state_dict(state[3])
