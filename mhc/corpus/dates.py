"""Weekdays, days between dates, clock times: computed with `datetime`."""

from datetime import date, timedelta

from .grammar import Pen, count, join
from .names import TOWNS, pronouns
from .voices import choose, request, voiced

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]  # fmt: skip


def written(day: date, year: bool = True) -> str:
    """Write a date as "3 May 2024"."""
    return f"{day.day} {MONTHS[day.month - 1]}" + (f" {day.year}" if year else "")


def clock(minutes: int) -> str:
    """Write minutes after midnight as "14:05"."""
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _day(pen: Pen) -> date:
    return date(pen.between(2000, 2030), pen.between(1, 12), 1) + timedelta(pen.between(0, 27))


def after(pen: Pen) -> tuple[str, list[str]]:
    """The weekday or date some days after a given one."""
    start = _day(pen)
    days = pen.between(2, 60)
    weekday, back = pen.chance(0.5), pen.chance(0.25)
    end = start - timedelta(days) if back else start + timedelta(days)
    voice = choose(pen, 0.7)
    way = "before" if back else "after"
    weeks, rest = divmod(days, 7)
    if weekday:
        first, last = DAYS[start.weekday()], DAYS[end.weekday()]
        prompt = pen.ask("{If today is <a>, what day {comes|is it} <n> days {<way>?|<way> that?}|Which weekday is <n> days <way> a <a>?|Today is "
                         "<a>. {What weekday {was|is} it <when>?|Name the day <when>.}}", a=first, n=days, way=way,
                         when=f"{days} days ago" if back else f"in {days} days").replace(" was it in", " is it in")  # fmt: skip
        if back:
            prompt = prompt.replace(" is it " + f"{days} days ago", " was it " + f"{days} days ago")
        prompt = prompt.replace(f"comes {days} days {way}?", f"comes {days} days {way} that?").replace(
            f"is it {days} days {way}?", f"is it {days} days {way} that?"
        )
        pen.cue(voice, first, rest)
        remainder = count(rest, "day")
        if weeks and rest:
            split = f"{days} days are {count(weeks, 'week')} and {remainder}"
        elif weeks:
            split = f"{days} days are exactly {count(weeks, 'week')}"
        else:
            split = f"{days} days are less than a week"
        answer = pen.say(
            "{It {is|will be|falls on} a <b>. {|Whole weeks change nothing: }<split>{, and counting <r> <dir> from <a> gives <b>|, so we count <r> <dir> from <a>}."
            "|<split>, so {only <r> {matter|count}|we move by <r>}. {Counting|Going} <dir> from <a> {leads to|gives|we reach} <b>."
            "|<b>. {The reason: |}<split>; <r> <way> <a> {is|comes} <b>.}".replace("{is|will be|falls on}", "was" if back else "{is|will be}"),
            a=first, b=last, split=split, r=remainder, dir="back" if back else "on", way=way)  # fmt: skip
        if rest == 1:
            answer = (
                answer.replace("1 day matter,", "1 day matters,")
                .replace("1 day count", "1 day counts")
                .replace("1 day matter.", "1 day matters.")
            )
        if not rest:
            answer = pen.say("{<split>, so {the weekday stays the same|nothing changes}: {it is|we land on} a <b> again.|{It is|That is} a <b> too, "
                             "{because|since} <split>.}", split=split, b=last)  # fmt: skip
    else:
        prompt = pen.ask("{What {date|day} is <n> days <way> <a>?|Which date comes <n> days <way> <a>?|{Give me|Tell me|Find} the date <n> days <way> <a>.|"
                         "Starting from <a>, {count|go} <dir> <n> days. {Where do we land?|What is the date?}}", n=days, way=way, a=written(start),
                         dir="back" if back else "forward")  # fmt: skip
        pen.cue(voice, MONTHS[start.month - 1], days % 7)
        end_of_month = (date(start.year + start.month // 12, start.month % 12 + 1, 1) - timedelta(1)).day
        if not back and end.month != start.month:
            left = end_of_month - start.day
            reason = pen.raw("{<m> has <k> days, so <l> of the <n> days {are left in it|still fall into it}|From <s> to the end of <m> {it takes|there are} <l> days, "
                             "as <m> has <k>}", m=MONTHS[start.month - 1], k=end_of_month, l=left, n=days, s=written(start, False))  # fmt: skip
            answer = pen.say("{<reason>. {The rest|What remains} {leads|takes us} to <b>{.|, a <d>.}|{It is|That is|We land on} <b>{, a <d>|}. <reason>.}",
                             reason=reason, b=written(end), d=DAYS[end.weekday()])  # fmt: skip
        else:
            answer = pen.say(
                "{It is|That {is|would be}|We {get|land on|arrive at}} <b>{, which {is|falls on} a <d>|, a <d>|}.",
                b=written(end),
                d=DAYS[end.weekday()],
            )
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        more = pen.between(1, 14)
        later = end + timedelta(more)
        turns += [pen.ask("{And <n> later?|Add <n> more.|And another <n> on?|What about <n> after that?}", n=count(more, "day")),
                  pen.say("{That is|Then it is|Then we are at|It is} <b>.", b=DAYS[later.weekday()] if weekday else written(later)).replace(
                      "at " + DAYS[later.weekday()], "at a " + DAYS[later.weekday()])]  # fmt: skip
    return "dates", turns


def between(pen: Pen) -> tuple[str, list[str]]:
    """The number of days between two dates of one year."""
    start = _day(pen)
    end = start + timedelta(pen.between(5, 90))
    name, he = pronouns(pen)
    event = pen.pick(
        ["birthday", "exam", "holiday", "wedding", "concert", "race", "move", "first lesson", "flight", "school play"]
    )
    voice = choose(pen, 0.65)
    prompt = pen.ask("{How many days are there {between|from} <a> <to> <b>?|Today is <a>. {How many days are left until|How long is it until} <name>'s <e> on <b>?|"
                     "<name>'s <e> is on <b>. It is <a> {now|today}. How {many days does <he> have|long must <he> wait}?}".replace("{between|from} <a> <to> <b>", "from <a> to <b>"),
                     a=written(start), b=written(end), name=name, e=event, he=he)  # fmt: skip
    pen.cue(voice, MONTHS[start.month - 1], event, name)
    total = (end - start).days
    pieces, at = [], start
    while (at.year, at.month) != (end.year, end.month):
        nxt = date(at.year + at.month // 12, at.month % 12 + 1, 1)
        pieces.append(((nxt - at).days, MONTHS[at.month - 1]))
        at = nxt
    if (end - at).days:
        pieces.append(((end - at).days, MONTHS[at.month - 1]))
    parts = join([f"{n} in {month}" for n, month in pieces])
    plus = " + ".join(str(n) for n, _ in pieces)
    if len(pieces) > 1:
        answer = pen.say("{{There are|It is|That makes} <t> days: <parts>.|{Count|Let us count} month by month: <parts>. {Together|In all} {that is|we get} <plus> = <t> "
                         "days.|<plus> = <t> days, {namely|that is,} <parts>.|<parts> {make|give} <t> days{| in all}.}", t=total, parts=parts, plus=plus)  # fmt: skip
    else:
        answer = pen.say("{Both dates are in <m>, so {subtract|take} <x> from <y>: {that leaves|there are} <t> days.|{It is|There are|That is} <t> days, {since|because} <y> - <x> = <t>.}",
                         m=MONTHS[start.month - 1], x=start.day, y=start.day + total, t=total)  # fmt: skip
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        weeks, rest = divmod(total, 7)
        turns += [pen.ask("{And in weeks?|How many weeks is that?|Say it in weeks.}"),
                  pen.say("{That is|It makes|<t> days are} <w>{ and <r>|, plus <r>}.", t=total, w=count(weeks, "week"), r=count(rest, "day")) if weeks and rest else
                  (f"It is exactly {count(weeks, 'week')}." if weeks else "It is less than a week.")]  # fmt: skip
    return "dates", turns


def times(pen: Pen) -> tuple[str, list[str]]:
    """When something ends, starts, or how long it lasts."""
    name, he = pronouns(pen)
    town, other = pen.sample(TOWNS, 2)
    what, low, high = pen.pick([("train", 35, 300), ("film", 80, 170), ("lesson", 30, 95), ("bus", 15, 140), ("concert", 60, 180), ("cake", 25, 80), ("meeting", 20, 130),
                                ("match", 60, 120), ("ferry", 30, 240), ("walk", 25, 200)])  # fmt: skip
    start, last = pen.between(6 * 12, 19 * 12) * 5, pen.between(low // 5, high // 5) * 5
    end = start + last
    hours, minutes = divmod(last, 60)
    length = join([text for text, n in ((count(hours, "hour"), hours), (count(minutes, "minute"), minutes)) if n])
    begins, ends = {"train": (f"leaves {town}", f"reaches {other}"), "bus": (f"leaves {town}", f"reaches {other}"), "ferry": (f"leaves {town}", f"reaches {other}"),
                    "cake": ("goes into the oven", "is done")}.get(what, ("begins", "ends"))  # fmt: skip
    unknown = pen.pick(["end", "start", "length"])
    voice = choose(pen, 0.7)
    slots = dict(w=what, b=begins, e=ends, s=clock(start), t=clock(end), l=length, name=name, he=he, n=last)
    prompt = pen.ask({
        "end": "{<name>'s <w> <b> at <s> and {takes|needs} <l>. When {is it over|does that end}?|The <w> <b> at <s>. It takes <l>. At what time {will it be over|is the end}?|If a <w> <b> at <s> "
               "and takes <l>, when is it {over|finished}?}",
        "start": "{The <w> <e> at <t> {and took|after} <l>. When did it {begin|start}?|<name> knows that the <w> <e> at <t> and takes <l>. When is the start?}",
        "length": "{The <w> <b> at <s> and <e> at <t>. How long is {that|it}?|How long does a <w> take that <b> at <s> and <e> at <t>?}"}[unknown], **slots)  # fmt: skip
    pen.cue(voice, what, hours, unknown, name)
    full = (start // 60 + 1) * 60
    if unknown == "end":
        answer = pen.say("{<s> plus <l> {is|makes|gives} <t>{.|, so {that is the end|it <e> then}.}|{It <e>|The <w> <e>} at <t>, <l> {after|later than} <s>.|" +
                         ("Add {the hours|the full hours} first: <mid>. {With|Adding} the other <m> minutes we {get|reach} <t>.}" if hours and minutes else "At <t>, {because|since} <l> after <s> {it is|the clock shows} <t>.}"),
                         **slots, mid=clock(start + hours * 60), m=minutes)  # fmt: skip
    elif unknown == "start":
        answer = pen.say("{<t> minus <l> {is|gives} <s>, {so that is the start|and then it began}.|{The start was|It began|The <w> began} at <s>: <l> {earlier than|before} <t>.|Count back <l> from <t> and you "
                         "{reach|get|arrive at} <s>.}", **slots)  # fmt: skip
    else:
        answer = pen.say("{From <s> to <t> {it is|there are|we count} <l>{.| in all.}|{It takes|The <w> takes|That is} <l>{.|, or <n> minutes.}|" +
                         ("Until <full> {it is|there are} <k> minutes, {and then|plus} <rest> more minutes{: together <l>|, which makes <l>}.}" if full < end else "It is <l>, {since|because} <t> is <n> minutes after <s>.}"),
                         **slots, full=clock(full), k=full - start, rest=end - full)  # fmt: skip
    return "times", [request(pen, prompt, voice), voiced(pen, voice, answer)]


FAMILIES = [(after, 4), (between, 3), (times, 3)]
