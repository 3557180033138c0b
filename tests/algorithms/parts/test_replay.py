"""The replay buffer."""

import torch
from parts import T

from lit_align.algorithms.parts.replay import Replay


def test_the_buffer_forgets_the_oldest_and_deals_evenly():
    replay = Replay(3)
    for i in range(5):
        replay.add({"prompt": [f"p{i}"], "win": T([[float(i)]])})
    assert replay.pairs["prompt"] == ["p2", "p3", "p4"] and replay.pairs["win"].flatten().tolist() == [2, 3, 4]
    assert sorted(replay.draw(3)["prompt"]) == ["p2", "p3", "p4"]
    seven = replay.draw(7)
    assert sorted(map(seven["prompt"].count, ("p2", "p3", "p4"))) == [2, 2, 3]
    assert [f"p{int(x)}" for x in seven["win"]] == seven["prompt"]
    again = Replay(3)
    again.load_state_dict(replay.state_dict())
    assert again.pairs["prompt"] == replay.pairs["prompt"] and torch.equal(again.pairs["win"], replay.pairs["win"])
