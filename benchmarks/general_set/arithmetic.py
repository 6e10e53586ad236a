"""Arithmetic in the forms that people write it in: sums, columns, steps, word problems, equations, sequences."""

from __future__ import annotations

from fractions import Fraction

from words import CITIES, COMPANIES, FIRST, FOODS, PRODUCTS, Hand


def sums(h: Hand) -> str:
    lines = []
    top = h.pick((20, 100, 1000, 10000))
    layout = h.pick(("{a} {s} {b} = {r}", "{a}{s}{b}={r}", "What is {a} {s} {b}? {r}", "{a} {s} {b} is {r}.", "({a}) {s} ({b}) = {r}", ">>> {a} {s} {b}\n{r}"))  # fmt: skip
    for _ in range(h.pick((1, 1, 3, 6, 10))):
        a, b = h.number(1, top), h.number(1, top)
        sign = h.pick("+-×÷" if "÷" not in layout and ">>>" not in layout else "+-*")
        if sign == "÷":
            a *= b
        result = {"+": a + b, "-": a - b, "×": a * b, "*": a * b, "÷": a // b}[sign]
        lines.append(layout.format(a=a, b=b, s=sign, r=result))
    return "\n".join(lines)


def column(h: Hand) -> str:
    numbers = [h.number(3, 9999) for _ in range(h.number(2, 5))]
    total = sum(numbers)
    width = len(f"{total}") + 2
    return "\n".join(
        [
            *(f"{number:>{width}}" for number in numbers[:-1]),
            f"+{numbers[-1]:>{width - 1}}",
            "-" * width,
            f"{total:>{width}}",
        ]
    )


def steps(h: Hand) -> str:
    a, b, c = h.number(2, 30), h.number(2, 20), h.number(2, 12)
    inner = a + b
    return h.pick((
        f"({a} + {b}) × {c}\n= {inner} × {c}\n= {inner * c}",
        f"Compute {a} + {b} × {c}.\nMultiplication comes first: {b} × {c} = {b * c}.\nThen {a} + {b * c} = {a + b * c}.",
        f"{a}² − {b}² = {a * a} − {b * b} = {a * a - b * b}",
        f"Solve {c}x + {a} = {c * b + a}.\n{c}x = {c * b}\nx = {b}",
        f"12 % of {c * 100} is {12 * c}; {c * 100} less 12 % is {88 * c}.",
    ))  # fmt: skip


def story(h: Hand) -> str:
    who, other, thing = h.pick(FIRST), h.pick(FIRST), h.pick(PRODUCTS)
    a, b, c = h.number(3, 40), h.number(2, 9), h.number(2, 25)
    return h.pick((
        f"{who} buys {b} {thing}s at {a} each and pays with {a * b + c}. The change is {a * b + c} − {b} × {a} = {c}.",
        f"A train leaves {h.pick(CITIES)} at {b}:00 and covers {a * 10} km in {c} hours. That is {a * 10 / c:.1f} km/h on average.",
        f"{who} has {a + c} stamps and gives {c} to {other}. How many are left?\n{a + c} - {c} = {a}. {who} has {a} stamps left.",
        f"If {b} people share {b * c} g of {h.pick(FOODS)} equally, each gets {c} g.",
        f"{h.pick(COMPANIES)} sold {a * 100} units in spring and {c * 100} in autumn, {abs(a - c) * 100} {'more' if c > a else 'fewer'} in autumn, {(a + c) * 100} in all.",
        f"A room is {a} m long and {b} m wide. Its area is {a * b} m² and its edge {2 * (a + b)} m.",
        f"{who} is {a + c} years old, {c} years older than {other}, who is {a}.",
    ))  # fmt: skip


def fraction(h: Hand) -> str:
    a, b = Fraction(h.number(1, 9), h.number(2, 12)), Fraction(h.number(1, 9), h.number(2, 12))
    sign = h.pick("+-*")
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{a} {sign} {b} = {result} ≈ {float(result):.3f}"


def sequence(h: Hand) -> str:
    start, step = h.number(0, 30), h.number(2, 15)
    kind = h.pick(("add", "double", "square", "table"))
    if kind == "table":
        return "\n".join(f"{k} × {step} = {k * step}" for k in range(1, 11))
    numbers = {"add": [start + k * step for k in range(9)], "double": [(start + 1) * 2**k for k in range(8)], "square": [(start + k) ** 2 for k in range(8)]}[kind]  # fmt: skip
    return ", ".join(map(str, numbers))


def comparison(h: Hand) -> str:
    a, b = h.number(1, 5000) / 100, h.number(1, 5000) / 100
    return f"{a} {'<' if a < b else '>' if a > b else '='} {b}"


def notation(h: Hand) -> str:
    number = h.number(17, 4000)
    return h.pick((
        f"{number} in binary is {number:b}, in hexadecimal {number:x}.",
        f"{number} = {number // 1000} thousands, {number // 100 % 10} hundreds, {number // 10 % 10} tens, {number % 10} ones",
        f"{number} mod {number % 13 + 2} = {number % (number % 13 + 2)}",
        f"√{(number % 60) ** 2} = {number % 60}",
        f"{number} seconds are {number // 60} minutes and {number % 60} seconds.",
        f"mean({number}, {number + 4}, {number + 8}) = {number + 4}",
    ))  # fmt: skip


def arithmetic(h: Hand, count: int) -> list[str]:
    kinds = (sums, sums, column, steps, steps, story, story, story, fraction, sequence, comparison, notation)
    return [h.pick(kinds)(h) for _ in range(count)]
