"""Small problems with the steps that solve them: every step and every result is computed.

Each takes a pen and gives the prompt, the steps (one a line) and the result.
"""

from datetime import date, timedelta

from .arithmetic import UNITS
from .dates import DAYS, clock, written
from .grammar import Pen, count, plural
from .names import PEOPLE, SHOPPING, pronouns

Problem = tuple[str, list[str], str]
THINGS = [name for name, _ in SHOPPING if name != "loaf"] + ["book", "shell", "coin", "card", "marble", "sticker"]


def tagged(steps: list[str], result: str) -> str:
    """The answer in the form that the model learns."""
    thought = "\n".join(steps)
    return f"<think>\n{thought}\n</think>\n<answer>\n{result}\n</answer>"


def _step(a: int, sign: str, b: int) -> tuple[str, int]:
    """One operation as it is written, and its value."""
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{a} {sign} {b} = {value}", value


def chain(pen: Pen) -> Problem:
    """Two operations from left to right."""
    a, b = pen.between(2, 40), pen.between(2, 40)
    first, middle = _step(a, "+", b)
    sign = pen.pick("+-")
    c = pen.between(2, min(40, middle - 1))
    second, value = _step(middle, sign, c)
    prompt = pen.ask("{{What is|How much is} <t>?|{Compute|Work out} <t>.}", t=f"{a} + {b} {sign} {c}")
    return prompt, [first, second], str(value)


def product(pen: Pen) -> Problem:
    """A product and a sum, the product first."""
    a, b, c = pen.between(2, 30), pen.between(2, 10), pen.between(2, 10)
    first, middle = _step(b, "*", c)
    second, value = _step(a, "+", middle)
    prompt = pen.ask("{{What is|How much is} <t>?|{Compute|Work out} <t>.}", t=f"{a} + {b} * {c}")
    return prompt, [f"The product comes first: {first}", second], str(value)


def keeping(pen: Pen) -> Problem:
    """Things that come and go."""
    name, he = pronouns(pen)
    thing = pen.pick(THINGS)
    a, b = pen.between(3, 30), pen.between(2, 20)
    more = pen.chance(0.5)
    first, middle = _step(a, "+", b)
    c = pen.between(2, min(20, middle - 1))
    second, value = _step(middle, "+" if more else "-", c)
    prompt = pen.ask(
        "<name> {has|owns} <a>. {First|Then} <he> {finds|buys|gets} <b> more, then <he> <c>. {How many <ts> does <he> have now?|How many <ts> are there in the end?}",
        name=name, he=he, a=count(a, thing), b=b, ts=plural(thing), c=f"buys {c} more" if more else f"gives {c} away")  # fmt: skip
    return prompt, [first, second], count(value, thing)


def bill(pen: Pen) -> Problem:
    """Several of one thing and one of another."""
    name, he = pronouns(pen)
    thing, other = pen.sample(THINGS, 2)
    n, price, last = pen.between(2, 9), pen.between(2, 9), pen.between(2, 20)
    first, middle = _step(n, "*", price)
    second, value = _step(middle, "+", last)
    prompt = pen.ask(
        "<name> {buys|takes|wants} <n> at <p> euros each and a(n) <o> for <l> euros. {What does <he> pay?|How much is that?|What is the total?}",
        name=name, he=he, n=count(n, thing), p=price, o=other, l=last)  # fmt: skip
    return prompt, [f"The {plural(thing)}: {first}", f"All together: {second}"], count(value, "euro")


def measure(pen: Pen) -> Problem:
    """From a large unit to a small one, and some more."""
    big, small, factor = pen.pick(UNITS)
    n, more = pen.between(2, 12), pen.between(2, 9)
    extra = pen.chance(0.5)
    given = f"{n} {big} and {more} {small}" if extra else f"{n} {big}"
    first, value = _step(n, "*", factor)
    steps = [f"{n} {big}: {first}"]
    if extra:
        second, value = _step(value, "+", more)
        steps.append(f"and {more} {small}: {second}")
    prompt = pen.ask("{How many <to> are <g>?|What is <g> in <to>?|Turn <g> into <to>.|<g>: how many <to>?}", to=small, g=given)  # fmt: skip
    return prompt, steps, f"{value} {small}"


def ages(pen: Pen) -> Problem:
    """The ages of two people, one given by the other."""
    (first, _), (second, _) = pen.sample(PEOPLE, 2)
    age, gap = pen.between(10, 40), pen.between(2, 9)
    older = pen.chance(0.5)
    one, other = _step(age, "+" if older else "-", gap)
    both, value = _step(age, "+", other)
    together = pen.chance(0.5)
    prompt = pen.ask("<a> is <n>. <b> is <g> years <o>. {<q>}", a=first, b=second, n=age, g=gap, o="older" if older else "younger",
                     q="How old are they together?" if together else f"How old is {second}?")  # fmt: skip
    steps = [f"{second}: {one}", *([f"Together: {both}"] if together else [])]
    return prompt, steps, str(value if together else other)


def weekday(pen: Pen) -> Problem:
    """The weekday some days from now."""
    start, days = pen.between(0, 6), pen.between(2, 40)
    weeks, rest = divmod(days, 7)
    prompt = pen.ask("{Today is <a>. {Which weekday|What day} is it in <n> days?|Which weekday comes <n> days after a <a>?|It is <a>. What day is it <n> days from now?}",
                     a=DAYS[start], n=days)  # fmt: skip
    steps = [f"{days} = {weeks} * 7 + {rest}"]
    way = [DAYS[(start + step) % 7] for step in range(rest + 1)]
    steps.append(", ".join(way) if rest else f"Whole weeks change nothing: {way[0]}")
    return prompt, steps, way[-1]


def day(pen: Pen) -> Problem:
    """The date some days later, across the end of a month."""
    start = date(pen.between(2000, 2030), pen.between(1, 12), pen.between(15, 28))
    end = start + timedelta(pen.between(3, 25))
    days = (end - start).days
    prompt = pen.ask("{What date is <n> days after <a>?|Which date comes <n> days after <a>?|It is <a>. What is the date in <n> days?}", n=days, a=written(start))  # fmt: skip
    if end.month == start.month:
        return prompt, [_step(start.day, "+", days)[0]], written(end)
    length = (date(start.year + start.month // 12, start.month % 12 + 1, 1) - timedelta(1)).day
    total = _step(start.day, "+", days)
    return prompt, [total[0], f"The month has {length} days: {_step(total[1], '-', length)[0]}"], written(end)


def end(pen: Pen) -> Problem:
    """When something ends that begins on the clock."""
    what = pen.pick(["film", "lesson", "concert", "meeting", "match", "walk", "play", "party"])
    start, hours, minutes = pen.between(6 * 12, 19 * 12) * 5, pen.between(1, 3), pen.between(1, 11) * 5
    middle, last = start + 60 * hours, start + 60 * hours + minutes
    prompt = pen.ask("{The|A} <w> {begins|starts} at <s> and takes <h> and <m>. {When does it end?|When is it over?|At what time is the end?}",
                     w=what, s=clock(start), h=count(hours, "hour"), m=count(minutes, "minute"))  # fmt: skip
    steps = [f"{count(hours, 'hour')} after {clock(start)}: {clock(middle)}", f"{minutes} minutes after {clock(middle)}: {clock(last)}"]  # fmt: skip
    return prompt, steps, clock(last)


PROBLEMS = (chain, product, keeping, bill, measure, ages, weekday, day, end)
