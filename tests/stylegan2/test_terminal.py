"""Text of files is shown, not obeyed."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylegan2.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\rb\bc\x7f\x9b31m", r"a\rb\x08c\x7f\x9b31m"),
        ("one\ntwo\u2028three", r"one\ntwo\u2028three"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("half \ud800", r"half \ud800"),
        ("ψ = 0.7, 16×12 – größer 你好 😀", "ψ = 0.7, 16×12 – größer 你好 😀"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_some_characters_may_stay() -> None:
    assert printable("a\n\tb\x1b", keep="\n") == "a\n\\tb\\x1b"


@given(st.text(alphabet=st.characters(exclude_characters="\\'\"")))
def test_any_text_prints_and_can_be_told(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert ast.literal_eval(f"'{shown}'") == text
