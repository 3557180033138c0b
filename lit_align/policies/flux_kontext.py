"""FLUX.1 Kontext: edits an image by an instruction (arXiv 2506.15742)."""

import torch

from lit_align.policies.editing import Editing
from lit_align.policies.flux import Flux
from lit_align.policies.packing import grid_ids, pack, unpack


class FluxKontext(Editing, Flux):
    """FLUX.1-dev with the tokens of the image that is edited after those of the image that is made; the first axis of
    their places tells them apart. It was trained on areas of about 1024^2 pixels."""

    pipeline_class = "FluxKontextPipeline"

    def predict(self, x_t, t, cond):
        (h, w), source = x_t.shape[2:], cond["source"]
        places = grid_ids(h // 2, w // 2, 3, x_t.device)
        source_places = grid_ids(source.shape[2] // 2, source.shape[3] // 2, 3, x_t.device)
        source_places[:, 0] = 1
        tokens = torch.cat([pack(x_t), pack(source)], 1)
        out = self.call(tokens, torch.cat([places, source_places]), t, cond)
        return unpack(out[:, : len(places)], h, w)
