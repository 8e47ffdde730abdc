"""Drafts keep a grammar: what comes out is what comes out without them, and they are taken inside it too."""

import json

import pytest

from inference.generation.grammar import Grammars
from inference.models.language_tokenizer import load_tokenizer
from inference.protocol.generation import Structure
from inference.protocol.settings import Speculation
from tests.support import engines

PROMPT = list(range(20, 43))
TOKENIZER = load_tokenizer(engines.tiny()[0])
OBJECT = r'\{"canary": "[a-z]{4,20}", "kitchen": \[[0-9]{1,9}(, [0-9]{1,9}){2,5}\]\}'
STRUCTURE = Structure(regex=OBJECT)  # a schema would let a random model write spaces
NGRAMS = Speculation(tokens=4, shortest_match=1)
MANNERS = {
    "same": {"draft": engines.tiny()[0]},
    "other": {"draft": engines.tiny(engines.OTHER)[0]},
    "ngram": {"speculation": NGRAMS},
}


def engine_with(**settings):
    engine = engines.engine(**settings)
    engine.grammars = Grammars(TOKENIZER, vocabulary_size=320, stops={engines.MARKS_END})
    return engine


def said(engine, structure=STRUCTURE, **more):
    grammar = engine.grammars.compile(structure)
    asked = {"limit": 120, "grammar": grammar, "stops": frozenset({engines.MARKS_END}), **more}
    request = engines.request(PROMPT, asked.pop("limit"), **asked)
    found = engines.run(engine, [request, engines.request(PROMPT[:9], 30)])
    assert found[1, 0].tokens == engines.greedy(PROMPT[:9], 30)
    return found[0, 0]


def fields(told):
    return told.tokens, told.finish, told.stop_token


@pytest.mark.parametrize("rules", [{}, {"temperature": 0.9, "seed": 4}], ids=["greedy", "seeded"])
@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
def test_a_structure_gives_the_same_with_drafts_and_without(manner, rules):
    engine = engine_with(**manner)
    told, plain = said(engine, **rules), said(engine_with(), **rules)
    assert fields(told) == fields(plain)
    read = json.loads(TOKENIZER.decode(told.tokens))
    assert set(read) == {"canary", "kitchen"}


def test_the_same_model_guesses_all_of_a_structure():
    engine = engine_with(draft=engines.tiny()[0])
    grammar = engine.grammars.compile(STRUCTURE)
    request = engines.request(PROMPT, 120, grammar=grammar, stops=frozenset({engines.MARKS_END}))
    told = engines.run(engine, [request])[0, 0]
    assert told.finish == "stop"
    assert engine.spent.accepted == engine.spent.drafted > 0
    assert engine.spent.iterations < len(told.tokens) / 2


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
def test_a_structure_is_kept_where_nobody_chose_the_seed(manner):
    engine = engine_with(**manner)
    told = said(engine, Structure(regex="[ab]{3}-(no|yes){2,5}!"), temperature=1.5)
    text = TOKENIZER.decode(told.tokens)
    assert told.finish == "stop"
    assert text.endswith("!")
    assert text[:3].strip("ab") == ""


def test_where_a_grammar_begins_the_drafts_behind_are_not_used():
    """The thoughts end with a token that was drafted, and what was drafted behind it knew of no grammar."""
    thoughts = engines.greedy(PROMPT, 20)
    for at in range(2, 10):
        after = thoughts[at]
        if after in thoughts[:at]:
            continue
        engine = engine_with(draft=engines.tiny()[0])
        told = said(engine, Structure(choice=["no"]), limit=30, grammar_after=after)
        assert told.tokens[: at + 1] == thoughts[: at + 1]
        assert TOKENIZER.decode(told.tokens[at + 1 :]) == "no"
        assert engine.spent.accepted > 0


def test_prompt_lookup_finds_drafts_inside_a_structure():
    engine = engine_with(speculation=NGRAMS)
    engine.drafts._payoff = engines.Always()
    told = said(engine, Structure(regex="(na){40}!"), limit=100)
    assert TOKENIZER.decode(told.tokens) == "na" * 40 + "!"
    assert engine.spent.accepted > 20
