"""The calculator: what it calls right and wrong, and what it must pass over."""

from __future__ import annotations

import time

import pytest

from rlef.evolution.arithmetic import check_equations

RIGHT = """48/2 = 24 clips
She earns $12 x 5 = $60
So. 3 + 4 = 7
1/3 = 0.33
10 / 3 = 3.3
Ben 12-5=7
He sold 48/2 = <<48/2=24>>24 clips
.4 liters * 1000 = <<.4*1000=400>>400 ml
15% * $1000=$<<15*.01*1000=150>>150
50% * 80 = 40
60% * 40% = 24%
20% + 30% = 50%
80 - 25% = 79.75
2 - 1/2 = 1 1/2 cups
1 - 3/7 = 4/7
3 * (4 + 5) = 3 * 9 = 27
10-3=7-2=5
$1,000 x 2 = $2,000
5-8=-3
He has (3+4=7 apples)
12 − 5 = 7 and 6 × 2 = 12 and 8 ÷ 4 = 2
X = 30 - 10 = 20"""
WRONG = """2+3=6
(2+3)*4=20, so 20-1=18
$1,000 x 2 = $2,000 and 2+2=5
He sold 48/2 = <<48/2=25>>25 clips
He sold <<48/2=25>>25 clips
She earns 12 x 5 = $<<12*5=60>>61
50% * 80 = 45
3 * (4 + 5) = 3 * 9 = 28
So it cost 192*100=$1920
4-1=2
9 / 3 = 4"""
# Right, or nothing that can be read: in none of these may it see a mistake.
PASSED_OVER = """no sum here
50% of 80 = 40
20 + 50% of 80 = 60
48 clips - 2 = 46
Half of 10 + 4 = 7
5 more than 3 * 4 = 17
2x - 5 = 15
Then 79 - B - 26 = 8
100/5 = 5A/5
80 - 25% = 60
3 * 25 = $0.75
$1 / 2 = 50 cents
5 * 3000 = 15 thousand
17 / 3 = 5 remainder 2
12 x 1 and 1/4 = 15
12 x 2 and 3/4 = 33
60 minutes x 2/3 = 40
on day 1 * 2 = 20
2^3 + 1 = 9
2:30 + 1 = 3:30
0900-0130 = 0730
14, 400 / 80 = 180
2*500=1 000
6 / 1/2 = 12
3+4=
9**9**9=1
5/0=1"""


@pytest.mark.parametrize("step", RIGHT.splitlines())
def test_right(step):
    assert check_equations(step) == 1.0


@pytest.mark.parametrize("step", WRONG.splitlines())
def test_wrong(step):
    assert check_equations(step) == 0.0


@pytest.mark.parametrize("step", PASSED_OVER.splitlines())
def test_passed_over(step):
    assert check_equations(step) is None


@pytest.mark.parametrize("piece", ["(", "1+", "1", "=", "1=", "1+1=", "9,", "<<1", "<<1+", " ", "1 x ", "-", "%"])
def test_hostile_text_costs_nothing(piece):
    began = time.process_time()
    check_equations((piece * 2000)[:2000] + "=1")
    assert time.process_time() - began < 1
