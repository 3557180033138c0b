"""Hooks that rewrite prompts, and the language models behind them."""

import json
import math

import pytest
import torch
from hooked import PROMPTS, SEEDS, draw, still
from parts import BlackBox
from servers import scripted_server

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.language_model import CausalLM, ServedLM
from lit_align.steering.promptist import Promptist
from lit_align.steering.writing import predictions


class Shout(Hook):
    def rewrite(self, texts, columns):
        return [text.upper() for text in texts]


def test_the_rewritten_prompt_is_drawn_and_rewards_see_the_users_own():
    policy, reward = still(), BlackBox()
    loud = [p.upper() for p in PROMPTS]
    assert torch.equal(draw(policy, Shout()), draw(policy, prompts=loud))
    best = BestOfN(reward, 2, Sampler(2, 3.0, steering=[Shout()]))(policy, PROMPTS, seeds=SEEDS)
    assert reward.asked == PROMPTS * 2 and best.texts == loud and best.prompts == PROMPTS
    same = BestOfN(reward, 2, Sampler(2, 3.0))(policy, loud, seeds=SEEDS)
    assert torch.equal(best.x, same.x)


def test_the_outermost_hook_rewrites_first():
    class Longer(Hook):
        def rewrite(self, texts, columns):
            return [f"{text} {columns['style'][i]}" for i, text in enumerate(texts)]

    state = Sampler(1, 1.0, steering=[Shout(), Longer()])(still(), ["a"], columns={"style": ["x"]})
    assert state.texts == ["A x"]
    with pytest.raises(ValueError, match="Shout rewrites prompts, and this method encodes them itself"):
        Sampler(1, 1.0, steering=[Shout()])(still(), ["a"], cond=still().condition(["a"]))


def greedy(lm, text, n):
    """By hand: the likeliest token, n times."""
    ids = lm.tokenizer(text, return_tensors="pt").input_ids
    for _ in range(n):
        ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, -n:]


def test_answers_are_greedy_continuations_whatever_the_padding():
    lm = CausalLM("tiny")
    texts = ["a cat Rephrase:", "b"]
    got = lm.answer(texts, temperature=0.0, max_new_tokens=5)
    assert [len(one) for one in got] == [1, 1]
    for text, (answer,) in zip(texts, got):
        tokens = greedy(lm, text, 5).tolist()
        end = tokens.index(lm.tokenizer.eos_token_id) if lm.tokenizer.eos_token_id in tokens else 5
        assert answer == lm.spell(torch.tensor([tokens[:end]]))[0]
    drawn = [lm.answer(["a", "b"], 2, seeds=[1, 2], max_new_tokens=4) for _ in range(2)]
    assert drawn[0] == drawn[1] and lm.answer(["b"], 2, seeds=[2], max_new_tokens=4)[0] == drawn[0][1]


def test_beams_find_the_likeliest_of_all_continuations():
    """A model whose next token depends on the last one alone: all sequences are enumerated, ended ones divided by their length
    to the power of the penalty."""
    lm = CausalLM("tiny")
    torch.manual_seed(3)
    words, end = lm.tokenizer, lm.tokenizer.eos_token_id
    letters = words.convert_tokens_to_ids(["x", "y", "z"])
    table = torch.full((len(words), len(words)), -30.0)
    table[:, [*letters, end]] = 2 * torch.randn(len(words), 4)
    forward = lm.model.forward

    def markov(input_ids=None, **kwargs):
        out = forward(input_ids=input_ids, **kwargs)
        out.logits = table[input_ids][:, -out.logits.shape[1] :]
        return out

    lm.model.forward = markov
    start, found = lm.tokenizer(" Rephrase:").input_ids[-1], []

    def walk(last, tokens, score):
        p = table[last].log_softmax(0)
        cut = len(tokens) == 4  # or it ends here
        found.append((tokens, score + (0 if cut else p[end].item()), len(tokens) + (not cut)))
        for letter in () if cut else letters:
            walk(letter, [*tokens, letter], score + p[letter].item())

    walk(start, [], 0.0)
    for penalty in (1.0, -1.0):
        best = max(found, key=lambda f: f[1] / f[2] ** penalty)[0]
        hook = Promptist(lm, beams=80, length_penalty=penalty, max_new_tokens=4)
        assert hook.rewrite(["a"], {}) == ["".join(words.convert_ids_to_tokens(best)) or "a"]


def test_what_is_asked_and_what_stays():
    class Echo(CausalLM):
        def answer(self, texts, **how):
            self.asked = texts, how
            return [[" "] if text.startswith("b") else ["  a cat, detailed "] for text in texts]

    lm = Echo("tiny")
    assert Promptist(lm).rewrite([" a cat ", "b", " a cat "], {}) == ["a cat, detailed", "b", "a cat, detailed"]
    asked, how = lm.asked
    assert asked == ["a cat Rephrase:", "b Rephrase:"]
    assert (how["beams"], how["length_penalty"], how["max_new_tokens"], how["temperature"]) == (8, -1.0, 75, 0.0)


def test_likelihoods_are_those_of_the_model():
    from lit_align.algorithms.prompt.prompt_sft import PromptSFT

    lm = CausalLM("tiny")
    written = PromptSFT(lm, separator="").written(["ab", "c"], ["xyz", "w"])
    _, _, got = predictions(lm, written)
    for row, (prompt, target) in enumerate([("ab", "xyz"), ("c", "w")]):
        ids = lm.tokenizer(prompt + target, return_tensors="pt").input_ids
        ids = torch.cat([ids, torch.tensor([[lm.tokenizer.eos_token_id]])], 1)
        log_p = lm.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).flatten()
        n = len(target) + 1
        torch.testing.assert_close(got[row][written.made[row]], log_p[-n:], atol=1e-5, rtol=1e-5)
        assert int(written.made[row].sum()) == n


def test_a_served_model_is_asked_with_retries():
    answer = {"choices": [{"message": {"content": "one"}}, {"message": {"content": "two"}}]}
    with scripted_server((500, {"error": "busy"}), (200, answer)) as (url, seen):
        lm = ServedLM("llm", [url], retries=2, backoff=0.0)
        with pytest.warns(UserWarning, match="such requests are repeated"):
            assert lm.answer(["hello"], 2, 0.5, seeds=[7]) == [["one", "two"]]
        body = json.loads(seen[-1][2])
        assert seen[-1][0] == "/v1/chat/completions" and len(seen) == 2
        assert body == {"model": "llm", "n": 2, "temperature": 0.5, "max_tokens": 75, "seed": 7, "messages": [{"role": "user", "content": "hello"}]}
        with pytest.raises(ValueError, match="a served language model has no beam search"):
            Promptist(lm).rewrite(["a"], {})
    with scripted_server((200, {"choices": []})) as (url, _), pytest.raises(ConnectionError, match="must hold 2 texts"):
        ServedLM("llm", [url], retries=0).answer(["hello"], 2)


def test_a_chat_model_is_spoken_to_as_a_user(tmp_path):
    lm = CausalLM("tiny")
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!"
    lm.save(str(tmp_path))
    again = CausalLM(str(tmp_path))
    ids, mask = again.read(["hi", "hello"])
    assert again.spell(ids[1:]) == ["<user>hello!"] and mask.sum(1).tolist() == [9, 12]
    plain = CausalLM(str(tmp_path), chat=False)
    assert plain.spell(plain.read(["hi"])[0]) == ["hi"]
    assert math.isclose(float(again.model.lm_head.weight.sum()), float(lm.model.lm_head.weight.sum()), rel_tol=1e-5)
