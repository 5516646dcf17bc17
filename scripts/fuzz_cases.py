"""What fuzz.py throws: hostile answers of every family, and files with one to three damages. Each case is drawn from its own seed.

Texts are what a policy, a teacher or a judge could write, or someone who can make them write it; `CANARY` in them stands for a command that
would leave a file, which shows whether anything was run.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

LONGEST = 10**6  # characters

# ------------------------------------------------------------------------------------------------- answers


def towers(rng: random.Random) -> str:
    base, depth = rng.choice("23579") + rng.choice(["", "9" * 8]), rng.randint(2, 12)
    power = rng.choice(["{}**{}", "{}^{{{}}}", "({})^({})", "\\left({}\\right)^{{{}}}", "{}^{}"])
    text = base
    for _ in range(depth):
        text = power.format(base, text)
    wrap = [
        "{}",
        "({})!",
        "\\binom{{{0}}}{{{0}}}",
        "\\sum_{{i=1}}^{{{}}} i",
        "\\sqrt[{0}]{{{0}}}",
        "x^{{{}}}-x",
        "({})%",
        "\\prod_{{k=1}}^{{{}}} k^k",
    ]
    return rng.choice(wrap).format(text)


def nests(rng: random.Random) -> str:
    opening, inner, closing = rng.choice(
        [("(", "1", ")"), ("[", "1", "]"), ("{", "x", "}"), ('{"a":', "1", "}"), ("\\frac{1}{", "2", "}"), ("\\sqrt{", "2", "}"),
         ("\\left(", "1", "\\right)"), ("\\boxed{", "3", "}"), ("\\text{", "a", "}"), ("-", "1", ""), ("((", "1", "+1)"), ("<div>", "x", "</div>"),
         ("\\begin{matrix}", "1", "\\end{matrix}"), ("|", "1", "|"), ("<<", "1=1", ">>")]
    )  # fmt: skip
    depth = _length(rng, 100_000)
    return opening * depth + inner + closing * (depth if rng.random() < 0.7 else depth - 1)


def digits(rng: random.Random) -> str:
    number = rng.choice("123456789") * _length(rng, LONGEST)
    how = [
        "{}",
        "-{}",
        "{}.{}",
        "{}/{}",
        "{}%",
        "1e{}",
        "{}e-99",
        "${}",
        "0.{}",
        "{},000",
        "{} million",
        "{} {}/{}",
        "\\frac{{{}}}{{{}}}",
        "{}/0",
    ]
    return rng.choice(how).replace("{}", number)


def scripts(rng: random.Random) -> str:
    """Digits of other scripts, marks that turn the line round, halves of characters, texts that are longer than they look."""
    pools = ["٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "²³¹⁰⁴", "①②Ⅷ½⅓", "𝟎𝟏𝟐𝟗", "一二三萬", "\u202e\u202d\u2066\u2069\u200f", "\u200b\u200d\ufeff\u00ad",
             "a\u0300\u0301\u0302" * 9, "\ud800\udfff\udc00", "\ufffe\uffff\U0010ffff", "\u2028\u2029\x85\x0b\x0c", "İıſẞﬁ", "＋－×÷＝％", "，．／"]  # fmt: skip
    return "".join(rng.choice(rng.choice(pools)) for _ in range(_length(rng, 20_000)))


# Pieces of what the patterns of answers, steps, elimination, the judge's parsers and the method search look for.
PIECES = (
    "\n", " ", "\t", "\r\n", ". ", ": ", ";\t", ", ", "? ", "! ", "and ", "then\n", "please ", "in ", "what percent ", "how many ", "the final answer is ",
    "answer is:", "#### ", "\\boxed{", "}", "\\frac{1}{2}", "1 1/2 ", "1,000", "1/", "=", "1=1", "<<1+1=2>>", "<<", "(1+", ")", "- ", "1 * ", "x ", "%", "$",
    "```\n", "```", "template:", "new problem: ", "here is ", "**", "{question}", '"1": {', '"1" : ', "{", "definition: 9, ", '"precision": 7', "version: 1",
    "what do you mean ", "need more ", "cannot be ", "sorry ", "of ", "remainder", "a", "A", "9", "'", "_", "\\", "|", "[", "]", "<", ">", "&", "@", "yes", "Step 1: ",
)  # fmt: skip


def bombs(rng: random.Random) -> str:
    """One to three such pieces again and again, and an end that does not match."""
    repeated = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 3)))
    text = repeated * (_length(rng, LONGEST) // len(repeated) + 1)
    return rng.choice(PIECES) + text + rng.choice([*PIECES, "\0", "é"])


def terminal(rng: random.Random) -> str:
    codes = [
        "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\", "\x1b]52;c;cm0gLXJmIH4=\x07", "\x1b[31m", "\x1bc", "\x9b31m",
        "\x1bP+q544e\x1b\\", "\x1b[6n", "\r\x1b[K", "\b" * 30, "\x07", "\x1b[?1049h", "\x1b]1337;File=inline=1:AAAA\x07", "\x7f", "\u202egnp.exe", "\x1b[1A",
    ]  # fmt: skip
    return " ".join(rng.choice(codes) + rng.choice(["error: all is well", "7", "\n"]) for _ in range(rng.randint(1, 200)))


def markup(rng: random.Random) -> str:
    tags = [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "' onmouseover='alert(1)", '"><script>x</script>', "</td></table>",
        "<a href='javascript:alert(1)'>", "<iframe srcdoc='<script>'>", "--><b>", "<![CDATA[", "&lt;script&gt;", "&#60;b&#62;", "</style><style>*{display:none}",
        "<meta http-equiv=refresh content=0>", "</title><body onload=x>", "<base href=//evil.example>", "](javascript:x)", "| a | b |", "<!--", "`<b>`",
        "[bold]", "[/]", "[link=http://evil.example]x[/link]", "[@click=app.quit]x[/]", "[red", "[/bold]", "\\[", ":skull:", "[[", "[#ff0000 on black]",
    ]  # fmt: skip
    return rng.choice(["", " ", "\n"]).join(rng.choice(tags) for _ in range(_length(rng, 2_000)))


def latex(rng: random.Random) -> str:
    parts = [
        "\\def\\x{\\x\\x}\\x", "\\input{/etc/passwd}", "\\write18{CANARY}", "\\href{javascript:alert(1)}{x}", "\\begin{cases}", "\\end{array}", "\\frac", "^", "_",
        "\\overline{\\frac{1}", "\\int_0^\\infty", "x^{x^{x}}", "\\operatorname{a}", "\\log_{0}{0}", "\\frac{0}{0}", "\\infty", "\\cup(", "\\{1,2,\\dots\\}", "&=\\\\",
        "\\sin^{99}", "10000!", "\\lim_{x\\to0}", "\\begin{pmatrix}1&2\\\\3\\end{pmatrix}", "y=x+1=z", "(1,2]",
    ]  # fmt: skip
    return "".join(rng.choice(parts) for _ in range(rng.choice([2, 5, 20, 200])))


def steps(rng: random.Random) -> str:
    count = _length(rng, 30_000)
    line = rng.choice(["{n}. 1 + {n} = {n}", "x", "Ann has 3 eggs.", "#### {n}", "  ", "Step {n}: 9**9**9 = {n}", "{n}/{n} = 1"])
    return rng.choice(["\n", "\n\n", "\r\n"]).join(line.replace("{n}", str(number)) for number in range(count)) + "\n#### 7"


def controls(rng: random.Random) -> str:
    return "".join(chr(rng.choice([0, 0, rng.randrange(32), rng.randrange(127, 160), 55, 65])) for _ in range(_length(rng, 5_000)))


def lines(rng: random.Random) -> str:
    piece = rng.choice(["a", "word ", "1+", "Ann has 3 eggs. ", "0 ", "é", "😀", "=1", "/"])
    return piece * (rng.choice([10_000, 100_000, LONGEST]) // len(piece))


def programs(rng: random.Random) -> str:
    code = [
        "__import__('os').system('CANARY')", "\\text{__import__('os').system('CANARY')}", "exec(\"import os; os.system('CANARY')\")", "$(CANARY)", "`CANARY`", "; CANARY #",
        "{{ cycler.__init__.__globals__.os.system('CANARY') }}", "{0.__class__.__mro__}", "{question.__class__}", "%(x)s %n", "!!python/object/apply:os.system ['CANARY']",
        "lambda: 0", "(lambda f: f(f))(lambda f: f(f))", "[x for x in range(10**10)]", "Symbol('x').func", "{marker}", "{steps}", "<|end|>", "<|assistant|>", "<|endoftext|>",
        "S('__import__(\"os\").system(\"CANARY\")')", "N(pi,10**9)", "factorial(10**9)", "Integer(9)**Integer(9)**Integer(9)",
    ]  # fmt: skip
    return rng.choice(["", "\n", "+"]).join(rng.choice(code) for _ in range(rng.randint(1, 4)))


FAMILIES: dict[str, Callable[[random.Random], str]] = {
    "towers": towers, "nests": nests, "digits": digits, "scripts": scripts, "bombs": bombs, "terminal": terminal, "markup": markup,
    "latex": latex, "steps": steps, "controls": controls, "lines": lines, "programs": programs,
}  # fmt: skip
# Where a parser looks for what a model says.
FRAMES = (
    "{}", "{}", "Ann has 2 eggs.\n#### {}", "So it is \\boxed{{}}.", "The answer is {}.", '{"definition": {}, "precision": 5, "integrity": {}}',
    '{"1": {"definition": {}, "precision": 1, "integrity": 1}, "2": {}}', "First wrong step: {}", "New problem: {}", "```\nWrite {question} and {}\n```", "{} How many?",
)  # fmt: skip


def answer(seed: int, number: int, canary: str) -> tuple[str, str]:
    """(family, text) of a case; families take turns, so that any number of cases holds all of them."""
    rng = random.Random(f"{seed}/answer/{number}")
    family = list(FAMILIES)[number % len(FAMILIES)]
    text = FAMILIES[family](rng)
    if rng.random() < 0.15:
        other = rng.choice(list(FAMILIES.values()))(rng)
        text = text[: LONGEST // 2] + rng.choice(["\n", " ", ""]) + other[: LONGEST // 2]
    return family, rng.choice(FRAMES).replace("{}", text.replace("CANARY", canary))[:LONGEST]


def _length(rng: random.Random, most: int) -> int:
    """Mostly short, sometimes `most`."""
    return rng.choice([2, 20, 200, 2_000, min(most, 20_000), most]) if rng.random() < 0.5 else rng.randint(1, min(most, 300))


# --------------------------------------------------------------------------------------------------- files


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (self.command,)


def hostile_values(rng: random.Random, canary: str) -> Any:
    """A value of another type than the one that was there."""
    family = rng.choice(list(FAMILIES.values()))
    return rng.choice(
        [None, True, False, 0, -1, 10**30, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "\0", "nan", "1e999", [], {}, [[]], [None], {"": None},
         {"a": {"b": {}}}, "../../etc/passwd", "/dev/zero", "/proc/self/mem", "9" * 5000, canary, list(range(50)), family(rng)[:2000]]
    )  # fmt: skip


def replaced(rng: random.Random, data: Any, canary: str) -> Any:
    """The same tree with one value, or one key, that is another."""
    if isinstance(data, dict) and data and rng.random() < 0.85:
        key = rng.choice(list(data))
        if rng.random() < 0.1:
            return {(one if one != key else str(hostile_values(rng, canary))[:200]): value for one, value in data.items()}
        return data | {key: replaced(rng, data[key], canary)}
    if isinstance(data, list) and data and rng.random() < 0.85:
        place = rng.randrange(len(data))
        return [*data[:place], replaced(rng, data[place], canary), *data[place + 1 :]]
    return hostile_values(rng, canary)


def flipped(rng: random.Random, data: bytes, canary: str) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice([1, 1, 3, 30])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng: random.Random, data: bytes, canary: str) -> bytes:
    return data[: rng.choice([0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)])]


def shuffled(rng: random.Random, data: bytes, canary: str) -> bytes:
    """A piece away, twice there, or zeroed."""
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    piece = data[start:stop]
    return data[:start] + rng.choice([b"", piece * 2, bytes(len(piece))]) + data[stop:]


def inserted(rng: random.Random, data: bytes, canary: str) -> bytes:
    place = rng.randrange(len(data) + 1)
    text = rng.choice(list(FAMILIES.values()))(rng)[:20_000].replace("CANARY", canary)
    return data[:place] + text.encode("utf-8", "surrogatepass") + data[place:]


def recoded(rng: random.Random, data: bytes, canary: str) -> bytes:
    text = data.decode("utf-8", "replace")
    return rng.choice(
        [
            b"\xef\xbb\xbf" + data,
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\xff\xfe\x00" + data,
            data.replace(b"\n", b"\r"),
            data + b"\xe9\x80",
        ]
    )


def other(rng: random.Random, data: bytes, canary: str) -> bytes:
    """Something else altogether."""
    return rng.choice(
        [b"", b"\0" * 4096, b"null", b"[]", b"{}", b'"text"', b"1e999", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"NaN", pickle.dumps(Payload(canary)),
         b"PK\x03\x04" + data, b"{" + b'"a":1,' * 1000 + b'"a":2}', rng.randbytes(300), b"%YAML 9.9\n---\n", b"\n" * 10_000, b"- " * 20_000 + b"x"]
    )  # fmt: skip


def json_tree(rng: random.Random, data: bytes, canary: str) -> bytes:
    """One value of one of its lines is another; written as a careless program would, NaN, half characters and all."""
    rows = data.split(b"\n") if b"\n{" in data and not data.startswith(b"{\n") else [data]
    place = rng.randrange(len(rows))
    try:
        rows[place] = json.dumps(replaced(rng, json.loads(rows[place]), canary), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return flipped(rng, data, canary)
    return b"\n".join(rows)


def yaml_tree(rng: random.Random, data: bytes, canary: str) -> bytes:
    if b": *" in data or b"[*" in data:  # after one of the tricks below, which would harm us too
        return flipped(rng, data, canary)
    try:
        tree = yaml.safe_load(data)
        return yaml.dump(replaced(rng, tree, canary), sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return flipped(rng, data, canary)


def yaml_tricks(rng: random.Random, data: bytes, canary: str) -> bytes:
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 25))
    merges = "b0: &b0 {k: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [{','.join([f'*b{n - 1}'] * 9)}]}}\n" for n in range(1, 25))
    trick = rng.choice(
        [f"x: !!python/object/apply:os.system ['{canary}']\n", f"x: !!python/object/new:subprocess.Popen [['sh', '-c', '{canary}']]\n", "x: !!python/name:os.system\n",
         laughs, merges, laughs + "run: *a24\n", merges + "stages: *b24\n", "a: &a [*a]\n", "run: &r {seed: *r}\n", "stages: &s {sft: *s}\n", "? [a, b]\n: c\n", "? {a: b}\n: c\n",
         "run: {seed: 0}\nrun: {seed: 1}\n", "x: 2001-99-99\n", "x: 1:99:99:99\n", "x: !!binary '@@@'\n", "x: !!timestamp 9999-99-99\n", "x: !!int 'a'\n", "x: 0x" + "f" * 9000 + "\n",
         "x: " + "9" * 9000 + "\n", "x: !!float nope\n", "1: 2\nnull: 3\ntrue: 4\n", "---\na: 1\n---\nb: 2\n", "x: " + "[" * 3000 + "\n", "x: |\n" + " a\n" * 30_000, "? " * 2000 + "\n",
         "<<: 3\n", "<<: [1, 2]\n", "<<: {a: 1}\n<<: {b: 2}\n", "x: !!set {a, b}\n", "x: !!omap [a: 1]\n", "stages: {ppo: {<<: {iterations: 3}}}\n"]
    )  # fmt: skip
    return rng.choice([trick.encode() + data, data + b"\n" + trick.encode(), trick.encode()])


BYTES = (flipped, cut, shuffled, inserted, recoded, other)


def damaged(rng: random.Random, file: Path, canary: str) -> str:
    """Damage a file; the names of the damages, most often one."""
    own = {".yaml": (yaml_tree, yaml_tree, yaml_tricks), ".json": (json_tree, json_tree), ".jsonl": (json_tree, json_tree)}.get(
        file.suffix, ()
    )
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        how = rng.choice([*own, *own, *BYTES])
        file.write_bytes(how(rng, file.read_bytes(), canary))
        done.append(how.__name__)
    return "+".join(done)
