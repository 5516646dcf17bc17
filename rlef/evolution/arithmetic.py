"""Checks the arithmetic that a step writes down, in its text and in GSM8K's calculator annotations <<48/2=24>>.

What people write is often right in another reading than a calculator's: "80 - 25% = 60", "3 * 25 = $0.75", "1 - 3/7 = 4/7",
"12 more than 3 + 4 = 19". So an equation is wrong only where it is in every reading, and is passed over where it may be a part of one.
"""

from __future__ import annotations

import re
from fractions import Fraction

_ANNOTATION = re.compile(r"<<([^<>=]{1,200})=([^<>=]{1,200})>>")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_TIMES = re.compile(r"(?<=[\d)%])\s?[xX]\s?(?=[\d($.])")  # elsewhere an x may be an unknown
_TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+|[-+*/()%]")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.(\d+))?%?")
_MIXED = re.compile(r"(\d+)(?: and)? (\d+)/(\d+)")
# In front of an expression, which is then only the end of one. "Half of 10 + 4", "60 minutes x 2/3", "on day 1 * 2".
_GOES_ON = re.compile(
    r"\b(?:of|by|from|than|times|x|plus|minus|over|per|twice|thrice|half|double|triple|(?:hour|day|week|month|year)s?)$",
    re.IGNORECASE,
)
# Behind a number, which is then not all of it. "= 2 thousand", "= 8 remainder 4", "= 2 and a half".
_NOT_ALL = re.compile(
    r"\s*(?:hundred|thousand|million|billion|dozen|cents?|remainder|with|r)\b|\s*and (?:an? |one |\d+[ /]|\()|\s?[:^]", re.IGNORECASE
)
_UNITS = (100, 1000, 10**6)  # a side may be in cents, per cent, grams, thousands
_LONGEST = 120  # characters of a side


def check_equations(step: str) -> float | None:
    """1 where every equation of a step is arithmetically right (to a cent, or as rounded), 0 where one is wrong, None where there is none
    to check. Words are not read: an equation between them is checked only where it stands complete."""
    text = step[:2000].translate(_SIGNS).replace("\\$", "$")
    verdicts = [_verdict(left, right) for left, right in _ANNOTATION.findall(text)]
    text = _TIMES.sub("*", _ANNOTATION.sub("", text))
    verdicts += [_at(text, place) for place, character in enumerate(text) if character == "="]
    found = [verdict for verdict in verdicts if verdict is not None]
    return float(all(found)) if found else None


def _at(text: str, place: int) -> bool | None:
    """The verdict on the equation whose sign stands at `place`."""
    start, stop = _start(text, place), _stop(text, place + 1)
    left, right = text[start:place].strip(), text[place + 1 : stop].strip()
    if not left or not _complete(text[: place - len(text[start:place].lstrip())], left):
        return None
    verdict = _verdict(left, right)
    attached = text[stop : stop + 1].isalpha() and text[stop - 1 : stop].isdigit()  # "= 5A / 5"
    return None if verdict is False and (attached or _NOT_ALL.match(text, stop)) else verdict


def _in_expression(text: str, place: int) -> bool:
    character = text[place]
    if character == ",":
        return text[place - 1 : place].isdigit() and text[place + 1 : place + 2].isdigit()
    return character in "0123456789+-*/()$% \t" or (character == "." and text[place + 1 : place + 2].isdigit())


def _start(text: str, place: int) -> int:
    """Where the expression before `place` starts; an open bracket that it does not close is left out."""
    depth, least = 0, max(0, place - _LONGEST)
    while place > least and _in_expression(text, place - 1):
        depth += (text[place - 1] == ")") - (text[place - 1] == "(")
        if depth < 0:
            break
        place -= 1
    return place


def _stop(text: str, place: int) -> int:
    """Where the expression from `place` on stops; a bracket that it did not open is left out."""
    depth, most = 0, min(len(text), place + _LONGEST)
    while place < most and _in_expression(text, place):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth < 0:
            break
        place += 1
    return place


def _complete(before: str, expression: str) -> bool:
    """Whether an expression may stand for itself behind the text `before` it."""
    body, spaced = before[-30:].rstrip(), before[-1:].isspace()
    if expression[0] in "+*/)" or (expression[0] == "-" and body and body[-1] not in "(,:;="):
        return False
    if re.search(r"[-+*/]\s*\($|\d[,:]$|(?:^|\s)\.$", body) or _GOES_ON.search(body):  # an open bracket, 14, 400 / 80, 2:30 + 1, . 84 + 2
        return False
    if re.search(r"\d and$", body) and re.match(r"\d+ ?/", expression):  # 12 * 1 and 1/4
        return False
    if not spaced:
        return not body or body[-1] in '([{,;:="'  # attached: 2^3+1, year5+1
    return body[-1].isalnum() or body[-1] in ".,;:=!?([{)]}\"'’”"


def _verdict(left: str, right: str) -> bool | None:
    """Whether two sides are equal in some reading; None where one has none, or another reading is likely."""
    if not any(sign in left.lstrip("-$ ") for sign in "+-*/"):
        return None
    values, number = _readings(left), _NUMBER.match(right.replace("$", "").lstrip())
    if not values or number is None:
        return None
    whole = right.replace("$", "").strip()
    mixed = _MIXED.fullmatch(whole)
    said = [*_readings(number[0]), *_readings(whole)]
    if mixed and int(mixed[3]):
        said.append(int(mixed[1]) + Fraction(int(mixed[2]), int(mixed[3])))
    slack = max(Fraction(1, 100), Fraction(1, 2 * 10 ** len(number[1] or "")))
    if any(abs(value - other) <= (Fraction(1, 100) if value.denominator == 1 else slack) for value in values for other in said):
        return True
    rest = whole[number.end() :]
    unsure = (rest and not _readings(whole)) or ("%" in left and any(sign in left for sign in "+-")) or left.count("/") > 1
    clock = re.search(r"(?<![.\d])0\d", left) is not None  # 0900 - 0130
    units = any(value * unit == other or value == other * unit for value in values for other in said for unit in _UNITS)
    return None if unsure or clock or units else False


def _readings(expression: str) -> list[Fraction]:
    """Its values: a percentage is its fraction, or the number before the sign."""
    shares = (Fraction(1, 100), Fraction(1)) if "%" in expression else (Fraction(1),)
    return [value for share in shares if (value := _calculate(expression, share)) is not None]


def _calculate(expression: str, percent: Fraction) -> Fraction | None:
    """Exact value of + - * / and brackets over plain numbers; None where it does not parse. No eval: the text is a model's."""
    text = expression.replace("$", "")
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != "".join(text.split()) or len(tokens) > 40:
        return None
    position = 0

    def atom() -> Fraction:
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":
            value = total()
            if tokens[position] != ")":
                raise ValueError
            position += 1
        elif token == "-":
            return -atom()
        else:
            value = Fraction(token.replace(",", ""))
        if position < len(tokens) and tokens[position] == "%":
            position += 1
            value *= percent
        return value

    def product() -> Fraction:
        nonlocal position
        value = atom()
        while position < len(tokens) and tokens[position] in "*/":
            sign, position = tokens[position], position + 1
            value = value * atom() if sign == "*" else value / atom()
        return value

    def total() -> Fraction:
        nonlocal position
        value = product()
        while position < len(tokens) and tokens[position] in "+-":
            sign, position = tokens[position], position + 1
            value = value + product() if sign == "+" else value - product()
        return value

    try:
        value = total()
        return value if position == len(tokens) else None
    except (ValueError, ZeroDivisionError, IndexError):
        return None
