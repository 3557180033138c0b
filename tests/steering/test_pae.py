"""Dynamic prompts and the policy that writes them."""

import pytest
import torch
from hooked import PROMPTS, SEEDS, draw, still
from parts import spy

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering.attend_excite import AttendExcite
from lit_align.steering.dynamic_prompt import DynamicPrompt, Piece, at_step, clean, parse, weigh
from lit_align.steering.pae import PAE, WEIGHTS, WINDOWS, DynamicLM
from lit_align.steering.writing import Written


def test_the_syntax():
    text = "a horse, [detailed:0.85-1:1.25] [x], [anime:0-0.5:0.75]"
    assert parse(text) == [Piece("a horse, "), Piece("detailed", 0.85, 1.0, 1.25), Piece(" [x], "), Piece("anime", 0.0, 0.5, 0.75)]
    assert clean(text) == "a horse, detailed [x], anime" and clean("[a:b-c:1]") == "[a:b-c:1]" and parse("") == []
    for wrong in ("[a:0.5-0.2:1]", "[a:0-1.5:1]", "[a:0-1:0]"):
        with pytest.raises(ValueError, match="a window is a-b with 0 <= a < b <= 1"):
            parse(wrong)


@pytest.mark.parametrize("steps", [10, 7, 50])
@pytest.mark.parametrize("window", [(0.5, 1.0), (0.0, 0.5), (0.85, 1.0), (0.0, 1.0)])
def test_windows_count_down(steps, window):
    """The fact that the release gives: loop indices T - int(b T) .. T - int(a T) - 1."""
    a, b = window
    there = [i for i in range(steps) if Piece("x", a, b).active(i, steps)]
    assert there == list(range(steps - int(b * steps), steps - int(a * steps)))


def test_a_step_has_the_active_words_and_their_places():
    pieces = parse("a [big:0.5-1:1.5] cat[, red:0-0.5:1]")
    assert at_step(pieces, 0, 4) == ("a big cat", ((2, 5, 1.5),)) and at_step(pieces, 3, 4) == ("a  cat, red", ())


def test_weights_keep_the_mean():
    torch.manual_seed(0)
    text = torch.randn(4, 3) + 1
    got = weigh(text, [(0, 0), (0, 1), (2, 5), (0, 0)], ((2, 5, 1.5),))
    scaled = text * torch.tensor([1, 1, 1.5, 1])[:, None]
    torch.testing.assert_close(got, scaled * text.mean() / scaled.mean())


def conditions(dynamic, steps=4, prompts=PROMPTS):
    """The text embeddings (T, P, L, D) that the network gets."""
    policy = still()
    with spy(policy, "denoise") as seen:
        draw(policy, DynamicPrompt(), steps=steps, w=1.0, columns={"dynamic": dynamic})
    return torch.stack([call.args[2]["text"] for call in seen.call_args_list])


def test_an_always_active_word_of_weight_1_changes_nothing_to_the_last_bit():
    policy = still()
    dynamic = ["a [red:0-1:1] circle", "b"]
    assert torch.equal(draw(policy, DynamicPrompt(), columns={"dynamic": dynamic}), draw(policy))
    assert torch.equal(draw(policy, DynamicPrompt()), draw(policy))


def test_the_window_05_to_1_differs_in_the_second_half_alone():
    cond, policy = conditions(["a [red:0.5-1:1] circle", "b"]), still()
    full, short = policy.condition(PROMPTS)["text"], policy.condition(["a  circle"])["text"]
    assert torch.equal(cond[:2], full.expand(2, *full.shape)) and torch.equal(cond[2:, 1], full[1].expand(2, *full[1].shape))
    assert torch.equal(cond[2:, 0], short.expand(2, *short.shape[1:])) and not torch.equal(short[0], full[0])


def test_a_weight_scales_the_words_tokens():
    policy = still()
    cond, full = conditions(["a [red:0-1:1.5] circle", "b"])[0], policy.condition(PROMPTS)["text"]
    factor = torch.tensor([[1.5 if s < 5 and e > 2 else 1.0] for s, e in policy.spans(PROMPTS[0])])  # "red": 2 to 5
    assert (factor > 1).sum() == 3  # a token a byte
    scaled = full[0] * factor
    torch.testing.assert_close(cond[0], scaled * full[0].mean() / scaled.mean(), atol=1e-5, rtol=1e-5)
    assert torch.equal(cond[1], full[1])


def test_it_holds_per_particle_and_in_minibatches():
    policy, dynamic = still(), ["a [red:0.5-1:1.25] circle", "b [x:0-0.5:0.5]"]
    together = draw(policy, DynamicPrompt(), columns={"dynamic": dynamic})
    alone = torch.cat([draw(policy, DynamicPrompt(), prompts=[p], seeds=[s], columns={"dynamic": [d]}) for p, s, d in zip(PROMPTS, SEEDS, dynamic)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    state = Sampler(4, 3.0, DDIM(0.0), [DynamicPrompt()], minibatch=1)(policy, PROMPTS, columns={"dynamic": dynamic}, seeds=SEEDS)
    torch.testing.assert_close(state.x, together, atol=1e-4, rtol=1e-4)
    assert state.texts == dynamic and state.prompts == PROMPTS
    with pytest.raises(ValueError, match="AttendExcite looks at words whose places DynamicPrompt changes"):
        draw(policy, DynamicPrompt(), AttendExcite(objects=["circle", "b"]))


def written(lm, text, weights, windows):
    ids = lm.tokenizer(text, return_tensors="pt").input_ids
    choices = {"weight": torch.tensor([weights]), "window": torch.tensor([windows])}
    return Written(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), choices)


def test_words_between_commas_share_what_most_of_their_tokens_chose():
    lm = DynamicLM("tiny")
    text = ", ab,cd.e"
    weights, windows = [2, 0, 3, 3, 2, 2, 2, 2, 2], [1, 0, 2, 2, 1, 1, 1, 1, 0]
    assert lm.dynamic(["a cat"], written(lm, text, weights, windows)) == ["a cat, [ab:0.5-1:1.25],cd.[e:0-0.5:1]"]
    colon = written(lm, ",a:b", [2, 4, 4, 4], [1] * 4)
    assert lm.dynamic(["x"], colon) == ["x,a:b"]  # it would be read as another window


def test_new_heads_prefer_what_changes_nothing_and_are_saved(tmp_path):
    lm = DynamicLM("tiny")
    w = lm.write(["a cat", "b"], 6, temperature=0.0)
    assert (w.choices["weight"] == WEIGHTS.index(1.0)).all() and (w.choices["window"] == WINDOWS.index("0-1")).all()
    assert not any("[" in t for t in lm.dynamic(["", ""], w))
    torch.manual_seed(0)
    for head in lm.heads.values():
        torch.nn.init.normal_(head.weight)
    lm.save(str(tmp_path))
    again = DynamicLM(str(tmp_path))
    again.tokenizer.chat_template = None
    assert again.dynamic(["a cat"], again.write(["a cat"], 6, 0.0)) == lm.dynamic(["a cat"], lm.write(["a cat"], 6, 0.0))
    state = Sampler(2, 1.0, steering=[PAE(again, 6)])(still(), ["a cat"], seeds=[0])
    assert state.texts == lm.dynamic(["a cat"], lm.write(["a cat"], 6, 0.0)) and state.prompts == ["a cat"]
