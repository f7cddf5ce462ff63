"""Tokens that are parts of characters."""

from tokenizers import pre_tokenizers

from tgi_server.token_bytes import _BYTES_OF_CHARS, token_bytes


def test_the_alphabet_is_that_of_byte_level_tokenizers():
    assert set(_BYTES_OF_CHARS) == set(pre_tokenizers.ByteLevel.alphabet())
    for text in ("é", "🎉", " a\n", "\x00"):
        [(piece, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert token_bytes("\ufffd", piece) == text.encode()


def test_byte_fallback_tokens_are_their_byte():
    assert token_bytes("\ufffd", "<0xF0>") == b"\xf0"


def test_whole_texts_are_their_bytes():
    assert token_bytes("é", "whatever") == "é".encode()
    assert token_bytes("\ufffd", None) == "\ufffd".encode()
    assert token_bytes("\ufffd", "\ufffd") == "\ufffd".encode()  # the character itself


def test_joined_bytes_are_the_message(serve):
    with serve(text="wörld 🎉") as server, server.client() as client:
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 11, "logprobs": True, "top_logprobs": 1}
        choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        joined = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert joined.decode() == choice["message"]["content"] == "wörld 🎉"
