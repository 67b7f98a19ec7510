"""Short passages about people: questions on them, summaries, retelling in another person, order, form or tone."""

from .grammar import Pen, count, join
from .names import OWNER, PEOPLE, TOWNS, pronouns
from .voices import choose, request, voiced

JOBS = ["nurse", "carpenter", "teacher", "baker", "engineer", "painter", "gardener", "pilot", "librarian", "cook",
        "journalist", "plumber", "vet", "tailor"]  # fmt: skip
HOBBIES = ["chess", "sailing", "pottery", "photography", "hiking", "singing", "swimming", "gardening", "juggling",
           "fencing", "knitting", "astronomy", "cycling", "baking"]  # fmt: skip
PETS = ["dog", "cat", "parrot", "rabbit", "hamster", "tortoise", "pony", "goldfish", "canary", "snake"]
COLOURS = ["red", "blue", "green", "yellow", "white", "purple", "grey", "orange"]
WISHES = ["see the northern lights", "learn to fly", "write a novel", "open a small cafe", "sail round an island",
          "climb a volcano", "keep bees", "build a boat", "speak five languages", "run a marathon"]  # fmt: skip
VEHICLES = ["bicycle", "van", "motorcycle", "car", "boat", "scooter"]

# Each fact: sentences in the third person, questions, and short answers.
FACTS = {
    "job": ("{<name> works as a(n) <job>|<he> is a(n) <job>|<his> job is that of a(n) <job>}", "{What is <name>'s job?|What does <name> do for a living?|How does <name> earn <his> money?}",
            "{<name> is a(n) <job>|<he> works as a(n) <job>|As a(n) <job>}"),
    "town": ("{<name> lives in <town>|<his> home is in <town>|<he> has a flat in <town>}", "{Where does <name> live?|In which town is <name>'s home?|Where is <name> at home?}", "{In <town>|<name> lives in <town>|<his> home is in <town>}"),
    "age": ("{<he> is <age> years old|<name> turned <age> this year|At <age>, <he> is {still young|no longer a child}}", "{How old is <name>?|What is <name>'s age?}", "{<age> years|<name> is <age>|<he> is <age> years old}"),
    "pet": ("{<he> has a(n) <colour> <pet>|<name> keeps a(n) <colour> <pet>|A(n) <colour> <pet> shares <his> home}", "{Which pet does <name> have?|What animal lives with <name>?}", "{A(n) <colour> <pet>|<name> has a(n) <colour> <pet>|<he> keeps a(n) <pet>, and it is <colour>}"),
    "hobby": ("{In <his> free time <he> enjoys <hobby>|<his> hobby is <hobby>|At weekends <name> goes in for <hobby>}", "{What is <name>'s hobby?|What does <name> like to do?|How does <name> spend <his> free time?}", "{<hobby>|<he> likes <hobby>|<name> enjoys <hobby>}"),
    "wish": ("{One day <he> wants to <wish>|<his> dream is to <wish>|<name> has always wanted to <wish>}", "{What does <name> dream of?|What is <name>'s dream?|What does <name> want to do one day?}", "{To <wish>|<he> wants to <wish>|<name> dreams that one day <he> will <wish>}"),
    "vehicle": ("{<he> goes to work by <vehicle>|Every morning <name> takes the <vehicle>|<his> <vehicle> takes <him2> to work}", "{How does <name> get to work?|What does <name> travel with?}", "{By <vehicle>|<name> takes the <vehicle>|<he> goes by <vehicle>}"),
    "siblings": ("{<he> has <siblings>|<name> grew up with <siblings>|<his> family includes <siblings>}", "{Does <name> have brothers or sisters?|How large is <name>'s family?|Who did <name> grow up with?}", "{<name> has <siblings>|Yes, <siblings>|<he> grew up with <siblings>}"),
}  # fmt: skip
FIRST = {"job": "{I work as a(n) <job>|I am a(n) <job>}", "town": "{I live in <town>|My home is in <town>}", "age": "{I am <age> years old|I am <age>}", "pet": "{I have a(n) <colour> <pet>|A(n) <colour> <pet> shares my home}",
         "hobby": "{My hobby is <hobby>|I enjoy <hobby>}", "wish": "{One day I want to <wish>|My dream is to <wish>}", "vehicle": "{I go to work by <vehicle>|My <vehicle> takes me to work}", "siblings": "{I have <siblings>|I grew up with <siblings>}"}  # fmt: skip
MISSING = {
    "job": "{job|work}",
    "town": "{home|town}",
    "age": "age",
    "pet": "pets",
    "hobby": "hobbies",
    "wish": "dreams",
    "vehicle": "way to work",
    "siblings": "family",
}


def _person(pen: Pen, name: str, he: str) -> dict:
    number, kind = pen.between(1, 4), pen.pick(["brother", "sister"])
    return dict(name=name, he=he, his=OWNER[he], him2="him" if he == "he" else "her", job=pen.pick(JOBS), town=pen.pick(TOWNS), age=pen.between(19, 79), pet=pen.pick(PETS), colour=pen.pick(COLOURS),
                hobby=pen.pick(HOBBIES), wish=pen.pick(WISHES), vehicle=pen.pick(VEHICLES), siblings=count(number, kind).replace("1 ", "one ").replace("2 ", "two ").replace("3 ", "three ").replace("4 ", "four "))  # fmt: skip


def _text(pen: Pen, person: dict, keys: list[str]) -> str:
    first = (
        FACTS[keys[0]][0]
        .replace("|<he>", "|<name>")
        .replace("{<he>", "{<name>")
        .replace("|<his>", "|<name>'s")
        .replace("{<his>", "{<name>'s")
        .replace("<his> free time <he>", "<his> free time <name>")
    )
    lines = [pen.ask(first, **person)]
    if person["name"] not in lines[0]:
        lines[0] = f"This is about {person['name']}. " + lines[0]
    return ". ".join([*lines, *(pen.ask(FACTS[key][0], **person) for key in keys[1:])]) + "."


def passage(pen: Pen) -> tuple[str, list[str]]:
    """Read about one or two people and answer, retell or condense."""
    name, he = pronouns(pen)
    person = _person(pen, name, he)
    keys = pen.sample(list(FACTS), pen.between(3, 5))
    text = _text(pen, person, keys)
    task = pen.pick(["question", "question", "first", "bullets", "order", "letter", "summary", "two", "two", "form"])
    voice = choose(pen, 0.65)
    key = pen.pick(keys)
    pen.cue(voice, name, person[key], keys[0])
    before = pen.chance(0.5)

    def ask(wish: str, body: str = text) -> str:
        return f"{wish}\n\n{body}" if before else f"{body}\n\n{wish}"

    if task == "question":
        if pen.chance(0.12):
            key = pen.pick([k for k in FACTS if k not in keys])
            answer = pen.say(
                "{The text does not say.|That is not in the text.|I cannot tell: the text {says nothing about|does not mention} <his> "
                + MISSING[key]
                + ".|Nothing is said about <name>'s "
                + MISSING[key]
                + ".}",
                **person,
            )
        else:
            answer = pen.say(FACTS[key][2], **person) + "."
        turns = [request(pen, ask(pen.ask(FACTS[key][1], **person)), voice), voiced(pen, voice, answer)]
        if pen.chance(0.5):
            other = pen.pick([k for k in keys if k != key] or keys)
            pen.cue(name, person[other])
            turns += [
                pen.ask("{And |}" + FACTS[other][1].replace("<name>'s", "<his>").replace("<name>", "<he>"), **person),
                pen.say(FACTS[other][2], **person) + ".",
            ]
            turns[-2] = (
                turns[-2]
                .replace("And What", "And what")
                .replace("And Where", "And where")
                .replace("And How", "And how")
                .replace("And Which", "And which")
                .replace("And Does", "And does")
                .replace("And Who", "And who")
                .replace("And In", "And in")
            )
        return "passages", turns
    if task == "first":
        pen.cue(name, person["job"], voice)
        answer = " ".join(pen.say(FIRST[k], **person) + "." for k in keys)
        return "passages", [request(pen, ask(pen.ask("{Rewrite this as if <name> were speaking.|Put this into the first person.|Let <name> tell it: use \"I\".|Write it as <name> would say it.}", **person)), voice),
                            voiced(pen, voice, pen.raw("{My name is|I am|Hello, I am|They call me} <name>. ", **person) + answer)]  # fmt: skip
    if task == "bullets":
        label = {
            "job": "Job",
            "town": "Home",
            "age": "Age",
            "pet": "Pet",
            "hobby": "Hobby",
            "wish": "Dream",
            "vehicle": "Way to work",
            "siblings": "Family",
        }
        value = {**{k: person[k] for k in keys if k in person}, "pet": f"{person['colour']} {person['pet']}"}
        return "passages", [ask(pen.ask("{Turn this into bullet points.|List the facts about <name>.|Make a fact sheet.|Notes only, please: one bullet for each fact.}", **person)),
                            f"**{name}**\n" + "\n".join(f"- {label[k]}: {value[k]}" for k in keys)]  # fmt: skip
    if task == "order":
        chosen = pen.sample(keys, len(keys) - 1)
        pen.cue(name, chosen[0], person["town"])
        names = join([pen.ask(MISSING[k]).lower() for k in chosen])
        first = (
            FACTS[chosen[0]][0]
            .replace("In <his> free time <he> enjoys", "In <his> free time <name> enjoys")
            .replace("|<he>", "|<name>")
            .replace("{<he>", "{<name>")
            .replace("|<his>", "|<name>'s")
            .replace("{<his>", "{<name>'s")
        )
        answer = ". ".join([pen.say(first, **person), *(pen.say(FACTS[k][0], **person) for k in chosen[1:])]) + "."
        return "passages", [
            ask(
                pen.ask(
                    "{Retell this in the order <n>.|Write it again, but mention <n>, in this order.|Rewrite: <n>, nothing else.}",
                    n=names,
                )
            ),
            answer,
        ]
    if task == "letter":
        other = pen.pick([n for n, _ in PEOPLE if n != name])
        pen.cue(name, other, voice)
        answer = (
            pen.say(
                "{Dear|Hello|Hi} <o>,\n\n{I {must|want to} tell you about <name>.|Have you met <name>?|You asked me about <name>.} ",
                o=other,
                **person,
            )
            + " "
            + " ".join(pen.say(FACTS[k][0], **person) + "." for k in keys[:3])
        )
        answer += "\n\n" + pen.say("{Yours,|See you soon,|Best wishes,|More soon,}")
        return "passages", [
            ask(
                pen.ask(
                    "{Tell <o> about <name> in a short letter.|Write to <o> about <name>, using this.|Make this a note to <o>. Use three facts.}",
                    o=other,
                    **person,
                )
            ),
            answer,
        ]
    if task == "summary":
        a, b = keys[0], keys[-1]
        pen.cue(name, a, b, voice)
        answer = pen.say(
            "{<x>, and <y>|<x>; <y>|<y>, and <x>}.",
            x=part(pen.raw(FACTS[a][0].replace("<he>", "<name>").replace("<his>", "<name>'s"), **person), name),
            y=part(pen.raw(FACTS[b][0], **person), name),
        )
        return "passages", [
            request(
                pen,
                ask(
                    pen.ask(
                        "{Sum this up in one sentence: only the first and the last fact.|One sentence with the first and the last fact, please.|Summarise: keep only what is said first and last.}"
                    )
                ),
                voice,
            ),
            voiced(pen, voice, answer),
        ]
    if task == "form":
        form = pen.pick(["question", "json", "short"])
        if form == "question":
            pen.cue(person["job"], name)
            n = min(3, len(keys))
            chosen = keys[:n]
            return "passages", [ask(pen.ask("{Write questions that this text answers, one for each of the first <n> facts.|Make a quiz of the first <n> facts: questions with answers.|Quiz me on the first <n> facts and give the answers.}", n=n)),
                                "\n".join(f"{i}. " + pen.say(FACTS[k][1], **person) + " " + pen.say(FACTS[k][2], **person) + "." for i, k in enumerate(chosen, 1))]  # fmt: skip
        rows = {k: person[k] for k in keys}
        if form == "json":
            return "passages", [ask(pen.ask("{Write it as JSON with the keys <k>.|Extract <k> as JSON.|JSON, please: <k>.}", k=join(["name", *keys]))),
                                "{" + ", ".join(f'"{k}": ' + (str(v) if isinstance(v, int) else f'"{v}"') for k, v in {"name": name, **rows}.items()) + "}"]  # fmt: skip
        return "passages", [
            ask(
                pen.ask(
                    "{Shorten this as much as you can.|As short as possible, please.|Telegram style, please.|Only keywords.}"
                )
            ),
            name
            + ": "
            + ", ".join(str(rows[k]) if k != "pet" else f"{person['colour']} {person['pet']}" for k in keys)
            + ".",
        ]
    other_name, other_he = pen.pick([p for p in PEOPLE if p[0] != name])
    other = _person(pen, other_name, other_he)
    both = f"{text} {_text(pen, other, keys)}"
    pen.cue(voice, name, key, other[key])
    if key == "age" and other["age"] != person["age"]:
        old, young = (person, other) if person["age"] > other["age"] else (other, person)
        gap = count(old["age"] - young["age"], "year")
        prompt = pen.ask("{Who is older, and by how much?|Which of them is older?|Compare their ages.}")
        answer = pen.say(
            "{<o> is {older|the older one}, by <g>.|<o> is <a> and <y> <b>, so <o> is older{ by <g>|}.|<y> is <g> younger than <o>.|At <a>, <o> is <g> older than <y>.}",
            o=old["name"],
            y=young["name"],
            g=gap,
            a=old["age"],
            b=young["age"],
        )
    else:
        prompt = pen.ask(
            "{Compare the two. Look at <k>.|How do they differ in <k>?|What is the difference between <a> and <b> in <k>?}",
            k=pen.ask(MISSING[key]).lower(),
            a=name,
            b=other_name,
        )
        x, y = (
            part(
                pen.raw(
                    FACTS[key][0].replace("<he>", "<name>").replace("<his>", "<name>'s").replace("<him2>", "<name>"),
                    **who,
                ),
                who["name"],
            )
            for who in (person, other)
        )
        answer = pen.say("<x>{, while |, but |; |, whereas }<y>.", x=x, y=y)
    return "passages", [request(pen, ask(prompt, both), voice), voiced(pen, voice, answer)]


def part(text: str, name: str) -> str:
    """Return a sentence fit to follow a comma."""
    first = text.split()[0]
    return text if first.startswith(name) or first in TOWNS else text[0].lower() + text[1:]


FAMILIES = [(passage, 1)]
