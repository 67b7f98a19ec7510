"""Given data: sort it, filter it, put it in a table, read a table, write it as JSON."""

import json

from .grammar import Pen, count, join
from .names import PEOPLE
from .voices import choose, request, voiced

WORDS = ["apple", "river", "candle", "window", "garden", "silver", "pepper", "mountain", "button", "letter", "forest", "bottle", "island", "lantern", "pillow", "rabbit", "saddle", "temple", "violin", "walnut", "yellow", "zebra", "anchor", "basket", "castle", "dragon", "engine", "feather", "guitar", "hammer", "insect", "jacket", "kitten", "ladder", "magnet", "needle", "orange", "pencil", "quilt", "rocket", "sailor", "ticket", "umbrella", "velvet", "whistle", "barn", "cloud", "drum", "echo", "flame", "gate", "hill", "ink", "jar", "key", "leaf", "moon", "nest", "oak", "pond", "rope", "seed", "tent", "vase", "wave"]  # fmt: skip


def words(pen: Pen) -> tuple[str, list[str]]:
    """Sort, reverse, filter or count a list of words."""
    items = pen.sample(WORDS, pen.between(4, 8))
    task = pen.pick(["alphabet", "length", "reverse", "longest", "letter", "number", "capital", "remove", "pick"])
    given = ", ".join(items)
    letter = pen.pick(pen.pick(items))
    position = pen.between(1, len(items))
    ordinal = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"][position - 1]
    prompt = pen.ask({
        "alphabet": "{Sort alphabetically|Put in alphabetical order|Arrange from A to Z}: <g>.",
        "length": "{Sort by length, shortest first|Order by the number of letters, shortest first}: <g>.",
        "reverse": "{Reverse this list|Write this list backwards|Turn the order round}: <g>.",
        "longest": "{Which word is longest|What is the longest word here|Find the longest word}: <g>?",
        "letter": "{Which of these words contain the letter <l>|Find the words with the letter <l>|Keep only words that contain <l>}: <g>.",
        "number": "{How many words are there|Count the words|How long is this list}: <g>?",
        "capital": "{Write in capitals|Put into upper case|Turn into capital letters}: <g>.",
        "remove": "{Remove the <o> word|Leave out the <o> word|Delete the <o> word}: <g>.",
        "pick": "{What is the <o> word|Which word is <o>|Name the <o> word}: <g>?"}[task], g=given, l=letter, o=ordinal)  # fmt: skip
    style = (
        pen.pick(["line", "line", "bullets", "numbers"])
        if task in ("alphabet", "length", "reverse", "capital", "remove")
        else "line"
    )
    if style != "line":
        prompt += " " + pen.ask(
            {
                "bullets": "{Use bullet points.|As bullets, please.|One bullet for each.}",
                "numbers": "{Number them.|As a numbered list.|With numbers, please.}",
            }[style]
        )
    result = {"alphabet": sorted(items), "length": sorted(items, key=lambda w: (len(w), items.index(w))), "reverse": items[::-1], "capital": [w.upper() for w in items],
              "remove": [w for i, w in enumerate(items) if i != position - 1], "letter": [w for w in items if letter in w]}.get(task, items)  # fmt: skip
    pen.cue(task, items[0], len(items))
    best = max(items, key=len)
    if task == "longest" and sum(len(w) == len(best) for w in items) > 1:
        return words(pen)
    if task == "longest":
        answer = pen.say(
            '{The longest {word |}is|It is} "<b>"{, with|: it has} <n> letters.|"<b>" {is the longest|wins}, {because|as} it has <n> letters.|With <n> letters, "<b>" is {the longest|longest of all}.',
            b=best,
            n=len(best),
        )
    elif task == "number":
        answer = pen.say(
            "{There are <n> words.|The list has <n> words{, from <a> to <z>|}.|I count <n>: {it starts with|the first is} <a> and {ends with|the last is} <z>.}",
            n=len(items),
            a=items[0],
            z=items[-1],
        )
    elif task == "pick":
        answer = pen.say(
            '{The <o> word is|It is|Number <p> is} "<w>"{.|, between its neighbours.|.}',
            o=ordinal,
            p=position,
            w=items[position - 1],
        ).replace(", between its neighbours", "")
    elif task == "letter":
        answer = pen.say(
            "{<n>: <r>.|The letter <l> is in <r>.|These have {it|a letter <l>}: <r>.|<r>. {That is <n>.|These are <n> in all.|}}",
            n=count(len(result), "word"),
            l=letter,
            r=join(result),
        )
        answer = (
            answer.replace("These have", "This one has").replace("These are 1 word", "That is 1 word")
            if len(result) == 1
            else answer
        )
    elif style == "line":
        answer = pen.raw("{||Here it is: |The new list: |Done: }") + ", ".join(result) + "."
        answer = answer[0].upper() + answer[1:]
    else:
        answer = "\n".join((f"{i}. " if style == "numbers" else "- ") + w for i, w in enumerate(result, 1))
    turns = [prompt, answer]
    if pen.chance(0.45) and style == "line" and task in ("alphabet", "length", "reverse"):
        turns += [
            pen.ask("{Now the other way round.|And in reverse?|Backwards, please.|Now turn it round.}"),
            (", ".join(result[::-1]) + ".").capitalize(),
        ]
    return "lists", turns


COLUMNS = {
    "age": (18, 80),
    "height": (150, 199),
    "score": (1, 99),
    "salary": (1200, 4900),
    "room": (101, 399),
    "weight": (48, 99),
}
CITIES = ["Paris", "Oslo", "Rome", "Cairo", "Lima", "Tokyo", "Berlin", "Madrid", "Athens", "Dublin", "Vienna", "Prague"]


def tables(pen: Pen) -> tuple[str, list[str]]:
    """People with numbers and cities: make a table, read one, sort it, or write JSON."""
    column = pen.pick(list(COLUMNS))
    names = pen.sample([name for name, _ in PEOPLE], pen.between(3, 5))
    numbers = pen.sample(range(*COLUMNS[column]), len(names))
    cities = pen.sample(CITIES, len(names))
    rows = list(zip(names, numbers, cities))
    prose = pen.ask(
        "{<r>.|The data: <r>.|Here are some people: <r>.}",
        r="; ".join(f"{n} from {c}, {column} {v}" for n, v, c in rows),
    )
    grid = table(rows, column)
    task = pen.pick(["make", "sort", "json", "who", "city", "above", "bullets", "sentence"])
    pen.cue(column, names[0], task)
    if task == "make":
        return "tables", [
            pen.ask(
                "{Make a table|Write a markdown table|Put this into a table|Turn this into a table}{ with the columns name, <c> and city|}. ",
                c=column,
            )
            + " "
            + prose,
            grid,
        ]
    if task == "sort":
        down = pen.chance(0.5)
        order = sorted(rows, key=lambda row: row[1], reverse=down)
        by = pen.pick(["name", column])
        if by == "name":
            order = sorted(rows, reverse=down)
        way = ("Z to A" if down else "A to Z") if by == "name" else ("largest first" if down else "smallest first")
        return "tables", [
            pen.ask(
                "{Sort this table by <b>, <w>:|Order the rows by <b>, <w>:|Here is a table. Sort it by <b>, <w>.}",
                b=by,
                w=way,
            )
            + "\n\n"
            + grid,
            table(order, column),
        ]
    if task == "json":
        return "tables", [pen.ask("{Write this as JSON.|Convert to a JSON list.|Give me JSON for this.}") + " " + prose,
                          "[\n" + ",\n".join("  " + json.dumps({"name": n, column: v, "city": c}) for n, v, c in rows) + "\n]"]  # fmt: skip
    source = grid if pen.chance(0.5) else prose
    person = pen.pick(rows)
    voice = choose(pen, 0.75)
    pen.cue(voice, column, person[2], task)
    if task == "who":
        best = max(rows, key=lambda row: row[1])
        question = pen.ask(
            "{Who has the {highest|largest} <c>?|Whose <c> is {highest|largest}?|Where does the person with the {highest|largest} <c> live?}",
            c=column,
        )
        answer = pen.say(
            "{It is <n>{ from <t>|, who lives in <t>}, with a(n) <c> of <v>.|<n> {of|from} <t> has the {highest|largest} <c>: <v>.|The person with the {highest|largest} <c>, <v>, is <n>{ from <t>| of <t>}.}",
            n=best[0],
            t=best[2],
            v=best[1],
            c=column,
        )
    elif task == "city":
        question = pen.ask(
            "{Who is from <t>?|What do we know about <n>?|Where is <n> from?|What is the <c> of <n>?|Tell me about the person from <t>.}",
            t=person[2],
            n=person[0],
            c=column,
        )
        answer = pen.say(
            "{<n> {is|comes} from <t> and has a(n) <c> of <v>.|The person from <t> is <n>, <c> <v>.|From <t> {there is|we have} <n>, whose <c> is <v>.|<n>: <t>, <c> <v>.}",
            n=person[0],
            t=person[2],
            v=person[1],
            c=column,
        )
    elif task == "above":
        limit = sorted(numbers)[len(numbers) // 2] - 1
        over = [n for n, v, _ in rows if v > limit]
        question = pen.ask(
            "{Who has a(n) <c> above <l>?|Whose <c> is more than <l>?|List everyone with a(n) <c> over <l>.}",
            c=column,
            l=limit,
        )
        answer = pen.say(
            "{<o> {do|have more than <l>}.|A(n) <c> above <l> {is found with|belongs to} <o>.|<k>: <o>.|These are above <l>: <o>.}",
            o=join(over),
            c=column,
            l=limit,
            k=count(len(over), "person").replace("persons", "people"),
        )
        if len(over) == 1:
            answer = (
                answer.replace(f"{over[0]} do.", f"{over[0]} does.")
                .replace(f"{over[0]} have", f"{over[0]} has")
                .replace("These are", "Only one is")
            )
    elif task == "bullets":
        return "tables", [
            pen.ask("{As bullet points:|Make bullets of this:|List the people, city first:}") + " " + prose,
            "\n".join(f"- {c}: {n} ({column} {v})" for n, v, c in rows),
        ]
    else:
        question = pen.ask("{Write one sentence for each person.|Put this into full sentences.|Write it as prose.}")
        sentences = []
        for n, v, c in rows:
            pen.cue(column, c, voice)
            sentences.append(pen.say("{<n> {lives in|comes from|is from} <t> and has a(n) <c> of <v>.|In <t> {lives|we find} <n> with a(n) <c> of <v>.|The <c> of <n>, who {lives in|comes from} <t>, is <v>.}", n=n, t=c, v=v, c=column))  # fmt: skip
        answer = " ".join(sentences)
    return "tables", [request(pen, f"{source}\n\n{question}", voice), voiced(pen, voice, answer)]


def table(rows: list, column: str) -> str:
    """Return rows of (name, number, city) as a markdown table."""
    lines = [f"| name | {column} | city |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {n} | {v} | {c} |" for n, v, c in rows])


FAMILIES = [(words, 4), (tables, 4)]
