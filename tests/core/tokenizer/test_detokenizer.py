import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_core.tokenizer.detokenizer import StopStrings, TextStream

TEXT = "Größe naïve 你好 🎉🙂 the scheduler decides."


def stream(tokenizer, ids, **options):
    """The pieces that the ids bring, the flush last, and the stop that was found."""
    text = TextStream(tokenizer, **options)
    pieces = [text.add(token_id) for token_id in ids]
    return [*pieces, text.flush()], text.stopped


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_pieces_are_the_whole(any_tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, any_tokenizer.vocab_size + 2), max_size=40))
    skip = data.draw(st.booleans())
    pieces, _ = stream(any_tokenizer, ids, skip_special_tokens=skip)
    assert "".join(pieces) == any_tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_real_text_comes_back(tokenizer, text):
    pieces, _ = stream(tokenizer, tokenizer.encode(text), skip_special_tokens=False)
    assert "".join(pieces) == text


def test_incomplete_characters_are_held_back(tokenizer):
    ids = tokenizer.encode(TEXT)
    pieces, _ = stream(tokenizer, ids)
    assert "�" not in "".join(pieces)
    cut = next(n for n in range(len(ids)) if "�" in tokenizer.decode(ids[:n]))
    pieces, _ = stream(tokenizer, ids[:cut])
    assert "�" in pieces[-1]  # the sequence ended in the middle of a character
    assert "�" not in "".join(pieces[:-1])


@pytest.mark.parametrize(
    ("stops", "text", "found"),
    [
        (["decides"], "the scheduler ", "decides"),
        (["nowhere"], "the scheduler decides which", None),
        ([""], "the scheduler decides which", None),
        (["which", "sched"], "the ", "sched"),
        (["scheduler d", "uler"], "the sched", "uler"),
        (["uler", "scheduler"], "the ", "scheduler"),
        (["the"], "", "the"),
        (["ch"], "the s", "ch"),
    ],
)
def test_the_stop_that_ends_first_counts(tokenizer, stops, text, found):
    pieces, stopped = stream(tokenizer, tokenizer.encode("the scheduler decides which"), stop=stops)
    assert ("".join(pieces), stopped) == (text, found)


def test_the_stop_can_be_kept(tokenizer):
    pieces, stopped = stream(tokenizer, tokenizer.encode("one two three"), stop=["two"], include_stop=True)
    assert ("".join(pieces), stopped) == ("one two", "two")


def test_nothing_comes_after_a_stop(tokenizer):
    text = TextStream(tokenizer, stop=["o"])
    assert text.add(tokenizer.encode("o")[0]) == ""
    assert text.stopped == "o"
    assert text.add(tokenizer.encode("x")[0]) == ""
    assert text.flush() == ""


def test_a_stop_in_the_flush_is_found(tokenizer):
    ids = tokenizer.encode("ab")
    incomplete = tokenizer.encode("🎉")[:1]
    pieces, stopped = stream(tokenizer, [*ids, *incomplete], stop=["b�"])
    assert ("".join(pieces), stopped) == ("a", "b�")


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=500, deadline=None)
@given(text=st.text("ab", max_size=20), stops=STOPS, cuts=st.sets(st.integers(0, 20)), include=st.booleans())
def test_how_the_text_is_cut_does_not_matter(text, stops, cuts, include):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    results = []
    for pieces in ([text[a:b] for a, b in itertools.pairwise(edges)], list(text)):
        search, passed = StopStrings(stops, include), ""
        for piece in pieces:
            passed += search.add(piece)
            if search.found:
                break
            shown = text[: len(passed)]
            assert passed == shown
        results.append((passed + ("" if search.found else search.release()), search.found))
    assert results[0] == results[1]
    ends = {text.find(stop) + len(stop) for stop in stops if stop in text}
    if ends:
        assert results[0][0] == text[: min(ends)].removesuffix("" if include else results[0][1])
    else:
        assert results[0] == (text, None)


@settings(max_examples=300, deadline=None)
@given(text=st.text("abc", max_size=20), stops=STOPS)
def test_text_is_held_back_exactly_as_long_as_it_could_begin_a_stop(text, stops):
    search, passed = StopStrings(stops, False), ""
    for character in text:
        passed += search.add(character)
        if search.found:
            return
        held = len(search._held)
        so_far = passed + search._held
        longest = max((n for stop in stops for n in range(len(stop)) if n and so_far.endswith(stop[:n])), default=0)
        assert held == longest
