"""Sums step by step, word problems, percentages, averages, units: every result is computed, none is written down."""

from fractions import Fraction

from .grammar import Pen, count, join, plural
from .names import PEOPLE, SHOPPING, TOWNS, pronouns
from .voices import choose, request, voiced


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _number(value: Fraction) -> str:
    """Write exactly, or rounded to two places."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def sums(pen: Pen) -> tuple[str, list[str]]:
    """Two-step expressions, worked out in the order of the operations."""
    a, b, c = pen.between(2, 99), pen.between(2, 60), pen.between(2, 12)
    shape = pen.between(0, 5)
    if shape == 0:
        text, steps, value = (f"{a} + {b} * {c}", [(f"{b} * {c}", b * c), (f"{a} + {b * c}", a + b * c)], a + b * c)
    elif shape == 1:
        text, steps = f"({a} + {b}) * {c}", [(f"{a} + {b}", a + b), (f"{a + b} * {c}", (a + b) * c)]
        value = (a + b) * c
    elif shape == 2:
        a += b
        text, steps = f"{c} * ({a} - {b})", [(f"{a} - {b}", a - b), (f"{c} * {a - b}", c * (a - b))]
        value = c * (a - b)
    elif shape == 3:
        d = pen.between(2, 40)
        text, steps = f"{a} + {b} + {d}", [(f"{a} + {b}", a + b), (f"{a + b} + {d}", a + b + d)]
        value = a + b + d
    elif shape == 4:
        product = b * c
        text, steps = f"{product} / {c} + {a}", [(f"{product} / {c}", b), (f"{b} + {a}", a + b)]
        value = a + b
    else:
        a += 100
        text, steps = f"{a} - {b} - {c}", [(f"{a} - {b}", a - b), (f"{a - b} - {c}", a - b - c)]
        value = a - b - c
    steps_wanted = pen.chance(0.65)
    voice = choose(pen, 0.75)
    prompt = pen.ask("{What is|Compute|Work out|Calculate|Please compute|Can you tell me} <t>?"
                     "|How much is <t>?|<t> = ?|I need the value of <t>.", t=text)  # fmt: skip
    prompt = prompt.replace("Compute " + text + "?", "Compute " + text + ".")
    if steps_wanted:
        prompt += " " + pen.ask("{Show your work.|Step by step, please.|Explain each step.|Show the steps.}")
    pen.cue(voice, shape, c, prompt[:7])
    (first, one), (second, two) = steps
    if steps_wanted:
        why = {
            0: "{multiplication comes before addition|we multiply before we add|the product goes first}",
            1: "{the brackets come first|we start inside the brackets|brackets go before everything else}",
            2: "{the brackets come first|we start inside the brackets|brackets go before everything else}",
            3: "{we go from left to right|the numbers are added in order}",
            4: "{division comes before addition|we divide before we add}",
            5: "{we subtract from left to right|we take away one number after the other}",
        }[shape]
        answer = pen.say(
            "{First, <f> = <x>, because " + why + ". {Then|Next,|After that,} <s> = <y>. {So the|The|Hence the} "
            "{answer|result|value} is <y>."
            "|" + why + ", so {start|begin} with <f>, which {is|gives|makes} <x>. {Now|Then} <s> {is|gives|makes} <y>"
            "{.|, and that is the answer.|, which is the final result.}"
            "|1. <f> = <x>\n2. <s> = <y>\n\n{The answer is|The result is|So it is} <y>."
            "|The {answer|result} is <y>. {Here is why: |To see this, note that |Proof: }" + why + ", so <f> gives <x>, "
            "and {from that |then |finally }<s> gives <y>.}",
            f=first, x=one, s=second, y=two)  # fmt: skip
    else:
        answer = pen.say("{<t> is <y>.|The {answer|result|value} is <y>.|It {is|comes to|makes} <y>.|<t> = <y>.|That "
                         "{is|makes|gives} <y>.}", t=text, y=value)  # fmt: skip
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        n = pen.between(2, 9)
        kind = pen.between(0, 2)
        follow, result, step = [
            (pen.ask("{And|What is that} {twice|doubled|times two}?"), value * 2, f"2 * {value} = {value * 2}"),
            (pen.ask("{Add <n> to it.|And <n> more?|Now add <n>.}", n=n), value + n, f"{value} + {n} = {value + n}"),
            (pen.ask("{Subtract <n>.|Now take away <n>.|And <n> less?}", n=n), value - n,
             f"{value} - {n} = {value - n}")][kind]  # fmt: skip
        turns += [
            follow,
            pen.say("{<s>.|That is <s>.|Then we {get|have} <s>.|Now it is <r>, because <s>.}", s=step, r=result),
        ]
    return "arithmetic", turns


def shopping(pen: Pen) -> tuple[str, list[str]]:
    """What several things cost together, and the change."""
    name, he = pronouns(pen)
    (thing, low), (other, low2) = pen.sample(SHOPPING, 2)
    n, m = pen.between(2, 9), pen.between(1, 6)
    p, q = low + 5 * pen.between(0, 20), low2 + 5 * pen.between(0, 20)
    x, y = n * p, m * q
    total = x + y
    note = next(size for size in (1000, 2000, 5000, 10000, 20000, 50000) if size >= total)
    change = pen.chance(0.5)
    voice = choose(pen, 0.7)
    order = pen.chance(0.5)
    parts = [f"{count(n, thing)} at {_money(p)} euros each", f"{count(m, other)} at {_money(q)} euros each"]
    parts = parts if order else parts[::-1]
    prompt = pen.ask(
        "{<name> buys <goods>.|At the market <name> takes <goods>.|<name> wants <goods>.|Into <name>'s basket go <goods>.}",
        name=name, goods=join(parts))  # fmt: skip
    prompt += " " + (
        pen.ask("{How much change does <he> get from a <note> euro note?|<he> pays with a <note> euro note. What is the change?}",
                he=he, note=note // 100)
        if change else pen.ask("{What does it cost?|How much does <he> pay?|What is the total?|Work out the bill.}", he=he))  # fmt: skip
    pen.cue(voice, name, thing, prompt[:5])
    first, second = ((n, thing, p, x), (m, other, q, y))[:: 1 if order else -1]
    answer = pen.say(
        "{The <things> cost <n> * <p> = <x> euros{ and the|, the} <others> <m> * <q> = <y> euros. {Together that is|In "
        "all that makes|Added up this is} <x> + <y> = <t> euros."
        "|{For|Take} the <things>{, <name> pays| <name> pays|: that is} <n> * <p> = <x> euros. The <others> {come to|make|add} "
        "<m> * <q> = <y> euros. {The sum is|The total is|So the bill is} <t> euros."
        "|<n> * <p> = <x> euros {for the <things>|is the price of the <things>}, and <m> * <q> = <y> euros "
        "{for the <others>|is that of the <others>}. <name> {pays|owes|spends} <t> euros {in all|altogether|in total}.}",
        things=first[1] if first[0] == 1 else plural(first[1]), n=first[0], p=_money(first[2]), x=_money(first[3]),
        others=second[1] if second[0] == 1 else plural(second[1]), m=second[0], q=_money(second[2]), y=_money(second[3]), t=_money(total), name=name,
        he=he)  # fmt: skip
    answer = answer.replace(
        "The " + first[1] + " cost ", "The " + first[1] + (" costs " if first[0] == 1 else " cost ")
    )
    for lone, number in ((first[1], first[0]), (second[1], second[0])):
        if number == 1:
            answer = answer.replace(f"{lone} come to", f"{lone} comes to").replace(f"{lone} make ", f"{lone} makes ")
            answer = answer.replace(f"{lone} add ", f"{lone} adds ")
    if change:
        answer += pen.say("{The change is|<he> gets back|From <note> euros there remain|So <he> receives} "
                          "<note>.00 - <t> = <c> euros{.| back.}", he=he, note=note // 100, t=_money(total),
                          c=_money(note - total)).join([" ", ""])  # fmt: skip
        answer = answer.replace("euros back.", "euros.")
    return "shopping", [request(pen, prompt, voice), voiced(pen, voice, answer)]


UNITS = [
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000), ("tonnes", "kilograms", 1000), ("litres", "millilitres", 1000),
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7),
    ("feet", "inches", 12), ("yards", "feet", 3), ("years", "months", 12), ("dozens", "pieces", 12),
    ("pounds", "ounces", 16), ("gigabytes", "megabytes", 1000),
]  # fmt: skip


def units(pen: Pen) -> tuple[str, list[str]]:
    """Convert from one unit to another, either way."""
    big, small, factor = pen.pick(UNITS)
    n = pen.between(2, 60)
    voice = choose(pen, 0.7)
    back = pen.chance(0.4)
    given, unit, target, result = (n * factor, small, big, n) if back else (n, big, small, n * factor)
    prompt = pen.ask(
        "{How many <to> are <g> <u>?|Convert <g> <u> to <to>.|<g> <u> in <to>?|What is <g> <u> in <to>?|Please turn <g> <u> "
        "into <to>.|I have <g> <u>. How many <to> is that?}", to=target, g=given, u=unit)  # fmt: skip
    pen.cue(voice, big, n % 10, prompt[:4])
    one = {"feet": "foot"}.get(big, big[:-1])
    rule = f"{one} {'has' if small in ('inches', 'pieces', 'days', 'months', 'ounces') else 'is'} {factor} {small}"
    work = f"{given} / {factor} = {result}" if back else f"{given} * {factor} = {result}"
    answer = pen.say(
        "{{One|A single|Each} <rule>, so <g> <u> {are|make|equal} <work> <to>."
        "|<g> <u> {are|equal|make|come to} <r> <to>, {because|since|for} one <rule> and <work>."
        "|{Divide|Simply divide} by <f>: <work>. {So|Hence|Therefore} <g> <u> {are|make} <r> <to>.}" if back else
        "{{One|A single|Each} <rule>, so <g> <u> {are|make|equal} <work> <to>."
        "|<g> <u> {are|equal|make|come to} <r> <to>, {because|since|for} one <rule> and <work>."
        "|{Multiply|Simply multiply} by <f>: <work>. {So|Hence|Therefore} <g> <u> {are|make} <r> <to>.}",
        rule=rule, g=given, u=unit, r=result, to=target, work=work, f=factor)  # fmt: skip
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        m = pen.between(2, 60)
        given2, result2 = (m * factor, m) if back else (m, m * factor)
        turns += [pen.ask("{And <g>?|What about <g> <u>?|And <g> <u>?|Now <g>, please.}", g=given2, u=unit),
                  pen.say("{In the same way, |Likewise, |By the same rule, |}<g> <u> {are|make|equal} <r> <to>.", g=given2, u=unit,
                          r=result2, to=target)]  # fmt: skip
    return "units", turns


def journeys(pen: Pen) -> tuple[str, list[str]]:
    """Speed, time and distance."""
    name, he = pronouns(pen)
    start, end = pen.sample(TOWNS, 2)
    by, speed = pen.pick([("train", 80), ("car", 60), ("bicycle", 15), ("bus", 50), ("boat", 20), ("scooter", 25)])
    speed += pen.between(0, 4) * 5
    hours = pen.between(2, 9)
    far = speed * hours
    unknown = pen.pick(["time", "distance", "speed"])
    voice = choose(pen, 0.7)
    facts = {"time": f"It is {far} kilometres and the {by} goes {speed} kilometres an hour.",
             "distance": f"The {by} goes {speed} kilometres an hour and the journey takes {hours} hours.",
             "speed": f"It is {far} kilometres and takes {hours} hours."}[unknown]  # fmt: skip
    question = pen.ask({"time": "{How long does it take?|How many hours is <he> on the way?|When does <he> arrive if <he> starts now?}",
                        "distance": "{How far is it?|How many kilometres is that?|What is the distance?}",
                        "speed": "{How fast is the <by>?|What is the speed?|How many kilometres an hour is that?}"}[unknown],
                       he=he, by=by)  # fmt: skip
    prompt = pen.ask("{<name> {goes|travels} from <a> to <b> by <by>.|By <by>, <name> {travels|goes} from <a> to <b>.|<name> takes the "
                     "<by> from <a> to <b>.} <facts> <q>", name=name, a=start, b=end, by=by, facts=facts, q=question)  # fmt: skip
    pen.cue(voice, by, name, hours)
    body = {
        "time": "{Divide the distance by the speed: <far> / <v> = <h>. {So|Therefore} {the journey takes|<name> needs|<he> "
                "arrives after} <h> hours.|{The <by>|It} covers <v> kilometres {every hour|each hour|in an hour}, so <far> kilometres take "
                "<far> / <v> = <h> hours.|<name> {needs|is on the way for} <h> hours, {since|because} <far> / <v> = <h>.}",
        "distance": "{Multiply speed by time: <v> * <h> = <far>. {So|Therefore} {it is|the way is|<a> and <b> are} <far> kilometres{| in "
                    "all}.|{In one hour|Every hour} the <by> covers <v> kilometres, {so in <h> hours|and in <h> hours} it covers <v> * <h> "
                    "= <far> kilometres.|{The distance is|<name> travels} <far> kilometres, {since|because} <h> hours at <v> kilometres "
                    "an hour {make|give} <far>.}",
        "speed": "{Divide the distance by the time: <far> / <h> = <v>. {So|Therefore} the <by> {goes|does|makes} <v> kilometres an "
                 "hour.|<far> kilometres in <h> hours {is|means|makes} <far> / <h> = <v> kilometres {an hour|per hour}.|{The speed "
                 "is|It is|The <by> goes at} <v> kilometres an hour, {because|since} <far> / <h> = <v>.}",
    }[unknown].replace("are} <far> kilometres{| in all}", "are} <far> kilometres{| apart}")  # fmt: skip
    body = body.replace("{it is|the way is|<a> and <b> are} <far> kilometres{| in all}",
                        "{it is <far> kilometres|the way is <far> kilometres long|<a> and <b> are <far> kilometres apart}")  # fmt: skip
    answer = pen.say(body, far=far, v=speed, h=hours, name=name, he=he, by=by, a=start, b=end)
    return "journeys", [request(pen, prompt, voice), voiced(pen, voice, answer)]


def averages(pen: Pen) -> tuple[str, list[str]]:
    """Mean, largest, smallest, total or range of given numbers that belong to people."""
    names = pen.sample([name for name, _ in PEOPLE], pen.between(3, 5))
    what, low, high = pen.pick([("points", 5, 60), ("books", 2, 30), ("stamps", 10, 90), ("kilometres", 3, 42),
                                ("apples", 4, 40), ("pages", 10, 99), ("coins", 5, 80)])  # fmt: skip
    values = pen.sample(range(low, high), len(names))
    unknown = pen.pick(["mean", "most", "least", "total", "range"])
    voice = choose(pen, 0.7)
    verb = {"points": "scored", "books": "read", "stamps": "collected", "kilometres": "ran", "apples": "picked",
            "pages": "wrote", "coins": "found"}[what]  # fmt: skip
    facts = join(
        [
            f"{name} {verb} {value}" + (f" {what}" if i == 0 else "")
            for i, (name, value) in enumerate(zip(names, values))
        ]
    )
    question = pen.ask({"mean": "{What is the average?|How many <w> is that on average?|Find the mean.}",
                        "most": "{Who <v> most?|Who <v> the most <w>?|Who comes first?}",
                        "least": "{Who <v> least?|Who <v> the fewest <w>?|Who comes last?}",
                        "total": "{How many <w> is that in all?|What is the total?|Add them up.}",
                        "range": "{How far apart are the best and the worst?|What is the difference between the most and the fewest?}"}[unknown],
                       w=what, v=verb)  # fmt: skip
    prompt = f"{facts}. {question}"
    total, most, least = sum(values), max(values), min(values)
    top, low_name = names[values.index(most)], names[values.index(least)]
    pen.cue(voice, what, names[0], len(names))
    plus = " + ".join(map(str, values))
    slots = dict(plus=plus, t=total, n=len(names), m=_number(Fraction(total, len(names))), w=what, v=verb, top=top, most=most, low=low_name,
                 least=least, d=most - least, second=sorted(values)[-2], next=sorted(values)[1])  # fmt: skip
    about = "" if Fraction(total, len(names)).denominator in (1, 2, 4, 5) else "about "
    answer = pen.say({
        "mean": "{<plus> = <t>, and <t> / <n> is " + about + "<m>. {So the average is " + about + "<m> <w>.|On average, that is " + about +
                "<m> <w>.}|{Add|First add} the numbers: <plus> = <t>. {Divide by <n>|Then divide by <n>}, {which gives|and you get} " + about +
                "<m> <w>{.| on average.}|The {average|mean} is " + about + "<m> <w>: {the sum|the total} is <t>, shared by <n> people.}",
        "most": "{<top> {did|is first}, with <most> <w>.|<top> <v> the most, <most> <w>, {ahead of|more than} the next with <second>.|With "
                "<most> <w>, <top> {leads|comes first|is ahead}{.|, <second> being the next number.}}",
        "least": "{<low> {did|is last}, with only <least> <w>.|<low> <v> the fewest, <least> <w>; {the next number is|next comes} <next>.|With "
                 "just <least> <w>, <low> {comes last|is at the bottom}{.|, behind the one with <next>.}}",
        "total": "{<plus> = <t>, {so they <v> <t> <w>|which makes <t> <w>} {together|in all|altogether}.|{Together|In all} they <v> <t> <w>, "
                 "{since|because} <plus> = <t>.|The {sum|total} of the <n> numbers is <t> <w>.}",
        "range": "{<top> <v> <most> and <low> only <least>, so {the difference is|they are} <most> - <least> = <d> <w>{.| apart.}|The difference "
                 "is <d> <w>, {from <least> for <low> up to <most> for <top>|because <top> <v> <most> and <low> <least>}.}",
    }[unknown], **slots)  # fmt: skip
    answer = answer.replace(
        "the difference is " + f"{most} - {least} = {most - least} {what} apart",
        "the difference is " + f"{most} - {least} = {most - least} {what}",
    )
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        order = sorted(zip(values, names), reverse=True)
        turns += [pen.ask("{Rank them.|Now sort them.|Put them in order, please.|List all of them, best first.}"),
                  "\n".join(f"{i}. {name}: {value} {what}" for i, (value, name) in enumerate(order, 1))]  # fmt: skip
    return "averages", turns


def percentages(pen: Pen) -> tuple[str, list[str]]:
    """Percentages and discounts."""
    thing = pen.pick(
        ["coat", "bicycle", "lamp", "guitar", "tent", "sofa", "camera", "watch", "table", "printer", "carpet", "kettle"]
    )
    price, percent = pen.between(2, 60) * 20, pen.pick([5, 10, 15, 20, 25, 30, 40, 50, 60, 75])
    part = price * percent // 100
    up = pen.chance(0.35)
    final = price + part if up else price - part
    voice = choose(pen, 0.65)
    name, he = pronouns(pen)
    prompt = pen.ask(
        "{A(n) <thing> {costs|is} <price> euros and {becomes|gets} <p> percent {dearer|more expensive}. What is the new price?|The price of a(n) "
        "<thing> rises by <p> percent from <price> euros. {What does it cost now?|Where does it end?}}" if up else
        "{A(n) <thing> costs <price> euros. There is a discount of <p> percent. {What does <name> pay?|How much is it now?}|<name> gets <p> percent off a(n) "
        "<thing> {of|that costs} <price> euros. {What is the new price?|What does <he> pay?}|How much is a(n) <thing> of <price> euros after <p> "
        "percent off?}", thing=thing, price=price, p=percent, name=name, he=he)  # fmt: skip
    pen.cue(voice, thing, percent)
    sign = "+" if up else "-"
    answer = pen.say(
        "{<p> percent of <price> {is|are|makes} <part>, {so the <thing> {now |}costs|and the new price is|which means it costs} <price> " + sign +
        " <part> = <final> euros.|The {new price|<thing>} {is|comes to|ends at} <final> euros: {one percent is <one> euros, <p> percent are <part> euros|the "
        "change is <price> * <p> / 100 = <part> euros}.|{First find|Start with} the <change>: <price> * <p> / 100 = <part> euros. {Then|Next,} <price> " +
        sign + " <part> = <final> euros{.|, and that is the price.}}", thing=thing, price=price, p=percent, part=part, final=final,
        one=_money(price) if price % 100 else price // 100, change="rise" if up else "discount")  # fmt: skip
    return "percentages", [request(pen, prompt, voice), voiced(pen, voice, answer)]


FAMILIES = [(sums, 5), (shopping, 3), (units, 3), (journeys, 3), (averages, 4), (percentages, 3)]
