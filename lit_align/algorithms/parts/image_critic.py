"""A critic of image embeddings whose neurons can be reset."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, DROPOUT = (1024, 128, 64, 16), (0.2, 0.2, 0.1, 0.0)  # the head of LAION's aesthetic predictor


class Critic(nn.Module):
    """TDPO-R's critic C(e) of image embeddings e (arXiv 2402.08552), as released: four linear hidden layers with
    dropout and no activations. Every layer's weights start at N(0, 1 / (D + 1)^2).

    Args:
        size: D.
    """

    def __init__(self, size: int):
        super().__init__()
        sizes, self.std = (size, *WIDTHS, 1), 1 / (size + 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=self.std)
            nn.init.zeros_(layer.bias)

    def hidden(self, e: Tensor) -> list[Tensor]:
        """Outputs (..., width) of the hidden layers."""
        outputs = [e]
        for layer, p in zip(self.layers, DROPOUT):
            outputs.append(F.dropout(layer(outputs[-1]), p, self.training))
        return outputs[1:]

    def forward(self, e: Tensor) -> Tensor:
        """(...,) from embeddings (..., D)."""
        return self.layers[-1](self.hidden(e)[-1]).squeeze(-1)

    @torch.no_grad()
    def scores(self, e: Tensor) -> list[Tensor]:
        """Activity (width,) of each layer's neurons: mean relu over embeddings e (M, D), over the layer's mean."""
        means = [out.relu().mean(0) for out in self.hidden(e)]
        return [mean / (mean.mean() + 1e-9) for mean in means]

    @torch.no_grad()
    def reset(self, masks: list[Tensor], state: dict, generator: torch.Generator) -> None:
        """Redraws the weights into and out of the masked neurons; zeroes their biases and the optimizer `state` of all
        these entries."""
        for mask, inward, outward in zip(masks, self.layers, self.layers[1:]):
            for p, where in ((inward.weight, mask), (inward.bias, mask), (outward.weight, (slice(None), mask))):
                std = self.std if p.ndim > 1 else 0.0
                p[where] = (std * torch.randn(p.shape, generator=generator)).to(p)[where]
                for moment in state.get(p, {}).values():
                    if moment.shape == p.shape:
                        moment[where] = 0
