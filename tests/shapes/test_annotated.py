"""Scenes that annotators compare and rank."""

import pytest
import torch

from lit_align.shapes.annotated import Annotated
from lit_align.shapes.annotators import Annotator, qualities
from lit_align.shapes.judge import see


def rows(n, first=0):
    return [{"index": first + i} for i in range(n)]


def test_pairs_are_the_annotators_choices_and_p_their_probability():
    names = {"a": Annotator({"large": 1.0}, temperature=0.4), "b": Annotator({"sparse": 1.0}, temperature=0.4)}
    batch = Annotated(names).collate(rows(200))
    assert batch["columns"]["user_id"][:3] == ["a", "b", "a"] and set(batch["label"].tolist()) == {1.0}
    worth = [[names[who].utility([qualities(scene, text)]).item() for scene in (win, lose)] for win, lose, text, who in zip(see(batch["win"]), see(batch["lose"]), batch["prompt"], batch["columns"]["user_id"])]
    gap = torch.tensor([win - lose for win, lose in worth])
    p = torch.tensor(batch["columns"]["p"])
    torch.testing.assert_close(p, torch.sigmoid(gap / 0.4), atol=1e-4, rtol=0.0)
    assert (p > 0.5).float().mean().item() == pytest.approx(torch.maximum(p, 1 - p).mean().item(), abs=0.08)  # the Bayes limit
    again = Annotated(names).collate(rows(3, 100))
    assert torch.equal(again["win"], batch["win"][100:103])  # generated from the row's number


def test_ties_are_kept_where_asked():
    batch = Annotated({"a": Annotator({"large": 1.0}, tie=0.3)}, ties="keep").collate(rows(100))
    tie = batch["label"] == 0.5
    assert 0.2 < tie.float().mean() < 0.8 and all(p == 0.5 for p, t in zip(batch["columns"]["p"], tie) if t)


def test_rankings_are_plackett_luces_and_levels_group_them():
    who = {"a": Annotator({"large": 1.0}, temperature=0.3)}
    batch = Annotated(who, k=3).collate(rows(200))
    assert batch["images"].shape == (200, 3, 3, 64, 64) and {tuple(sorted(s)) for s in batch["scores"][..., 0].tolist()} == {(0.0, 1.0, 2.0)}
    scenes = see(batch["images"].flatten(0, 1))
    u = torch.tensor([who["a"].utility([qualities(scene, "a circle")]).item() for scene in scenes]).view(200, 3)
    first = (u / 0.3).softmax(1).gather(1, batch["scores"][..., 0].argmax(1, keepdim=True))  # P(the one that came first)
    best = (u / 0.3).softmax(1).square().sum(1)
    assert first.mean().item() == pytest.approx(best.mean().item(), abs=0.08)
    halves = Annotated(who, k=4, levels=2).collate(rows(5))["scores"][..., 0]
    assert (halves.sort(1).values == torch.tensor([0.0, 0.0, 1.0, 1.0])).all()
