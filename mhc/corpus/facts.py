"""Questions on the little encyclopedia: describe, compare, list, doubt, riddle, table."""

from .grammar import Pen, article, join, plural, tidy
from .knowledge import EVERYTHING, KINDS, Entity
from .voices import OPENINGS, TONES, choose, in_tone, request, voiced

PROPER = ("country", "planet")
MASS = {"element", "sport"}
UNCOUNTED = {"bread", "sushi", "chocolate", "cheese", "hummus", "porridge", "curry", "yoghurt", "honey", "paella", "tofu",
             "popcorn", "soup", "salad", "kimchi", "pizza", "bamboo", "scissors"}  # fmt: skip

# Each kind: sentences about one attribute, in several wordings. <X> is "the lion", "gold" or "France".
ABOUT = {
    "animal": {
        "home": "{<X> lives <home>|You find <x> <home>|It is at home <home>|It spends its life <home>}",
        "food": "{It eats <food>|It feeds on <food>|Its food is <food>|On its menu {you find|there is} <food>}",
        "feature": "{It <feature>|What is special: it <feature>|Remarkably, it <feature>|<X> <feature>}",
        "group": "{It is a(n) <group>|<X> belongs to the <group>s|Among animals it counts as a(n) <group>}",
        "weight": "{It weighs about <weight> kilograms|A grown one {weighs|reaches} some <weight> kilograms|Its weight is around <weight> kilograms}"},
    "country": {
        "capital": "{Its capital is <capital>|The capital of <x> is <capital>|<capital> is the capital{| of <x>}|It is governed from <capital>}",
        "continent": "{<X> lies in <continent>|You find <x> in <continent>|It is a country in <continent>|It belongs to <continent>}",
        "language": "{People {there |}speak <language>|You hear <language> {there|in the streets}|They speak <language> there}",
        "known": "{It is known for <known>|The world knows it for <known>|It is famous for <known>|Visitors think of <known>}",
        "people": "{About <people> million people live there|It has some <people> million inhabitants|Its population is about <people> million}"},
    "planet": {
        "place": "{<X> is <place>|Its place is <place>|Count outwards and it comes <place>}",
        "feature": "{It <feature>|What is special: it <feature>|<X> <feature>}",
        "moons": "{It has <moons>|<X> travels with <moons>|Around it there {is|are} <moons>}",
        "year": "{Its year {lasts|takes} <year>|It goes round the Sun in <year>|One trip round the Sun takes <year>}",
        "kind_of": "{It is a(n) <kind_of>|<X> is a(n) <kind_of>|Astronomers call it a(n) <kind_of>}"},
    "element": {
        "symbol": "{Its symbol is <symbol>|Chemists write <symbol>|The symbol <symbol> stands for it}",
        "number": "{Its atomic number is <number>|It has <number> {proton|protons} in its nucleus|It is number <number> of the periodic table}",
        "state": "{At room temperature it is a <state>|It is a <state> in a normal room|<X> is a <state> {in daily life|at room temperature}}",
        "use": "{It is used for <use>|People need it for <use>|We use it for <use>|You meet it in <use>}",
        "feature": "{It <feature>|What is special: it <feature>|<X> <feature>}"},
    "instrument": {
        "family": "{It is a(n) <family>|<X> is a(n) <family>|It belongs to the <family>s}",
        "played": "{It is played <played>|You play it <played>|Musicians play it <played>}",
        "feature": "{It <feature>|<X> <feature>|What is special: it <feature>}",
        "music": "{You hear it in <music>|It is at home in <music>|Its place is in <music>}"},
    "tool": {
        "use": "{With it you <use>|You use it to <use>|It helps you to <use>|People need it to <use>}",
        "part": "{It has <part>|It consists of <part>|Look for <part>}",
        "user": "{<user> use it{ every day|}|It is a favourite of <user>|You see it in the hands of <user>}",
        "care": "{Remember: <care>|A word of advice: <care>|Take care and <care>|When you use it, <care>}"},
    "food": {
        "made": "{It is made from <made>|You need <made> for it|The ingredients are <made>|In it there is <made>}",
        "origin": "{It comes from <origin>|It came to us from <origin>|We owe it to <origin>}",
        "taste": "{It tastes <taste>|The taste is <taste>|Its flavour is <taste>}",
        "eaten": "{It is eaten <eaten>|People eat it <eaten>|You enjoy it <eaten>}"},
    "profession": {
        "task": "{<X> <task>|Such a person <task>|In this job, one <task>}",
        "place": "{The work is done <place>|One works <place>|You meet such people <place>}",
        "needs": "{<X> <needs>|Such a person <needs>|Whoever does this <needs>}",
        "tools": "{The tools are <tools>|For the work one uses <tools>|Always at hand: <tools>}"},
    "sport": {
        "players": "{It is for <players>|Those who take part: <players>|It takes <players>}",
        "gear": "{The gear is <gear>|You need <gear>|It takes <gear>}",
        "aim": "{The aim is to <aim>|To win, you must <aim>|You try to <aim>}",
        "place": "{It takes place <place>|It is done <place>|People do it <place>}"},
    "tree": {
        "leaves": "{It has <leaves>|You know it by its <leaves>|Its twigs carry <leaves>}",
        "fruit": "{It bears <fruit>|Its fruit: <fruit>|What grows on it: <fruit>}",
        "wood": "{It gives <wood>|People value its <wood>|From it comes <wood>}",
        "place": "{It grows <place>|You find it <place>|It is at home <place>}"},
}  # fmt: skip
NOT_THERE = {("element", "number"): {"<number> {proton|protons}"}}

QUESTIONS = {
    "animal": {"home": "{Where does <one> live?|In what places would I find <one>?}", "food": "{What does <one> eat?|What is the food of <one>?}",
               "group": "{What kind of animal is <one>?|Is <one> a mammal, a bird or something else?}", "weight": "{How heavy is <one>?|What does <one> weigh?}",
               "feature": "{What is special about <one>?|What is remarkable about <one>?}"},
    "country": {"capital": "{What is the capital of <x>?|Name the capital of <x>.|Which city governs <x>?}", "continent": "{On which continent is <x>?|Where is <x>?}",
                "language": "{What do people speak in <x>?|Which language is spoken in <x>?}", "known": "{What is <x> known for?|Why do people visit <x>?}",
                "people": "{How many people live in <x>?|What is the population of <x>?}"},
    "planet": {"place": "{Where is <x> in the solar system?|How far out is <x>?}", "moons": "{How many moons does <x> have?|Does <x> have moons?}", "year": "{How long is a year on <x>?}",
               "feature": "{What is special about <x>?|How would I recognise <x>?}", "kind_of": "{What kind of planet is <x>?}"},
    "element": {"symbol": "{What is the symbol {of|for} <x>?}", "number": "{What is the atomic number of <x>?|How many protons has <x>?}", "state": "{Is <x> solid, liquid or gas?|In what state is <x>?}",
                "use": "{What is <x> used for?|Why do we need <x>?}", "feature": "{What is special about <x>?}"},
    "instrument": {"family": "{What kind of instrument is <one>?}", "played": "{How do you play <one>?|How is <one> played?}", "feature": "{What is special about <one>?}", "music": "{Where do I hear <one>?}"},
    "tool": {"use": "{What is <one> for?|What do I need <one> for?}", "part": "{What are the parts of <one>?|What does <one> look like?}", "user": "{Who uses <one>?}", "care": "{What must I watch when using <one>?|How do I use <one> safely?}"},
    "food": {"made": "{What is <one> made of?|What goes into <one>?}", "origin": "{Where does <one> come from?}", "taste": "{How does <one> taste?}", "eaten": "{How is <one> eaten?|When do people eat <one>?}"},
    "profession": {"task": "{What does <one> do?|What is the job of <one>?}", "place": "{Where does <one> work?}", "needs": "{What must one be able to do as <one>?|What does it take to be <one>?}", "tools": "{Which tools does <one> use?}"},
    "sport": {"players": "{How many play <x>?|Who takes part in <x>?}", "gear": "{What gear do I need for <x>?}", "aim": "{How do you win at <x>?|What is the aim of <x>?}", "place": "{Where is <x> done?}"},
    "tree": {"leaves": "{What are the leaves of <one> like?}", "fruit": "{What grows on <one>?}", "wood": "{What is the wood of <one> good for?}", "place": "{Where does <one> grow?}"},
}  # fmt: skip


def one(entity: Entity) -> str:
    """Return "a lion", "gold" or "France"."""
    if entity.kind in PROPER or entity.kind in MASS or entity.name in UNCOUNTED:
        return entity.name
    return f"{article(entity.name)} {entity.name}"


def the(entity: Entity) -> str:
    """Return "the lion", "gold" or "France"; a profession keeps its "a"."""
    text = one(entity)
    return text if entity.kind == "profession" or text == entity.name else f"the {entity.name}"


def state(pen: Pen, entity: Entity, attribute: str) -> str:
    """Say one attribute in one sentence without its full stop."""
    text = pen.raw(ABOUT[entity.kind][attribute], x=the(entity), X=the(entity), one=one(entity), **entity.facts)
    if entity.name == "scissors":
        text = (
            text.replace("It has", "They have")
            .replace("It consists", "They consist")
            .replace("the scissors is", "the scissors are")
        )
    if attribute == "number" and entity["number"] == "1":
        text = text.replace("1 protons", "1 proton")
    elif attribute == "number":
        text = text.replace(" proton ", " protons ")
    if attribute == "moons":
        text = (
            text.replace("there is more", "there are more")
            .replace("there is no ", "there are no ")
            .replace("there is two", "there are two")
            .replace("there are one", "there is one")
            .replace("there is 2", "there are 2")
            .replace("there is 1", "there are 1")
            .replace("travels with no moons", "travels without a moon")
        )
    text = text.replace("fishs", "fish").replace("with bellowss", "with bellows")
    return tidy(text)


def sentence(pen: Pen, entity: Entity, attribute: str) -> str:
    """Say one attribute as a sentence."""
    return state(pen, entity, attribute) + "."


def describe(pen: Pen) -> tuple[str, list[str]]:
    """What is X? In a voice, a number of sentences, bullets, or about named aspects in the order of the prompt."""
    entity = pen.pick(EVERYTHING)
    attributes = list(entity.facts)
    voice = choose(pen, 0.45)
    number = pen.between(2, 4)
    way = pen.pick(["plain", "sentences", "bullets", "aspects", "aspects", "single", "single"])
    words = {
        "one": one(entity),
        "x": the(entity) if entity.kind != "profession" else one(entity),
        "n": {2: "two", 3: "three", 4: "four"}[number],
    }
    wish = "{Tell me about <x>.|What is <one>?|Describe <x>.|What can you say about <x>?|Who or what is <one>?|Explain what <one> is.|What do you know about <x>?}"
    if entity.kind in PROPER or entity.kind == "profession":
        wish = "{Tell me about <x>.|Describe <x>.|What can you say about <x>?|What do you know about <x>?|I want to learn about <x>.}"
    pen.cue(voice, entity.name, entity.kind)
    pen.rng.shuffle(attributes)
    if way == "single":
        attribute = attributes[0]
        prompt = pen.ask(QUESTIONS[entity.kind][attribute], **words)
        pen.cue(voice, entity.name, attribute)
        answer = sentence(pen, entity, attribute)
        if pen.chance(0.4):
            prompt += " " + pen.ask(
                "{And one more fact, please.|Add something interesting.|Add one more thing.|And what else?}"
            )
            answer += (
                " "
                + pen.raw("{Also, |By the way, |And |Besides, }")
                + lower(
                    sentence(
                        pen, entity, list(entity.facts)[(list(entity.facts).index(attribute) + 1) % len(entity.facts)]
                    ),
                    entity,
                )
            )
    elif way == "aspects":
        chosen = attributes[:number]
        label = {"home": "habitat", "feature": "special feature", "group": "animal group", "known": "fame", "people": "population", "kind_of": "type", "played": "way of playing",
                 "made": "ingredients", "eaten": "way of eating", "needs": "demands", "care": "safety", "user": "users", "part": "parts", "moons": "moons", "number": "atomic number",
                 "year": "length of the year", "place": "place", "task": "main task", "aim": "aim"}  # fmt: skip
        order = join([label.get(attribute, attribute) for attribute in chosen])
        prompt = pen.ask(
            "{Describe <x>: <o>.|Tell me about <x>. Cover <o>, in this order.|<x>: <o>, please.|Write about <x>. Mention <o>.|I need <o> of <x>.}",
            **words,
            o=order,
        )
        answer = " ".join(sentence(pen, entity, attribute) for attribute in chosen)
        if pen.chance(0.3):
            prompt += pen.ask(" {Use bullet points.|As a list.|Make it a list.|One bullet each.}")
            answer = "\n".join("- " + sentence(pen, entity, attribute) for attribute in chosen)
            return "facts", [prompt, answer]
    else:
        attributes = list(entity.facts)
        start = len(entity.name) % len(attributes)
        attributes = (attributes[start:] + attributes[:start])[:number]
        if voice in ("poet", "grumpy", "coach"):
            attributes.reverse()
        prompt = pen.ask(wish, **words)
        if way == "bullets":
            prompt += " " + pen.ask(
                "{Give me <n> bullet points.|Use <n> bullets.|<n> bullet points, please.|List <n> facts.}", **words
            )
            answer = "\n".join("- " + sentence(pen, entity, attribute) for attribute in attributes)
            return "facts", [request(pen, prompt, voice), (pen.raw("{Here you are:|<n> facts:|About <x>:|In short:}", **words).capitalize() if voice == "plain" else
                             pen.raw(OPENINGS[voice]).strip()) + "\n\n" + answer]  # fmt: skip
        if way == "sentences":
            prompt += " " + pen.ask(
                "{Use <n> sentences.|<n> sentences, please.|In <n> sentences.|Not more than <n> sentences.}", **words
            )
        else:
            attributes = attributes[:3]
        answer = sentence(pen, entity, attributes[0])
        for i, attribute in enumerate(attributes[1:]):
            text = sentence(pen, entity, attribute)
            answer += " " + (
                pen.raw(["{|Also, |Moreover, |Besides, }", "{|And |In addition, }", "{Finally, ||Last of all, }"][i])
                + "\0"
                + text
            )
        answer = glue(answer, entity)
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        other = pen.pick([e for e in KINDS[entity.kind] if e is not entity])
        attribute = pen.pick(list(entity.facts))
        kind = pen.between(0, 2)
        if kind == 0:
            pen.cue(other.name, attribute)
            turns += [
                pen.ask(QUESTIONS[entity.kind][attribute], one=one(other), x=the(other))
                .replace("What ", "And what ", 1)
                .replace("Where ", "And where ", 1),
                sentence(pen, other, attribute),
            ]
        elif kind == 1:
            pen.cue(entity.name, "follow")
            turns += [
                pen.ask("{Make it shorter.|Shorter, please.|Too long. One sentence.|In one sentence, please.}"),
                sentence(pen, entity, next(iter(entity.facts))),
            ]
        else:
            new = pen.pick([v for v in TONES if v not in (voice, "plain")])
            pen.cue(new, entity.name, entity.kind)
            turns += [pen.ask("{Now <how>.|Say that again, but <how>.|Once more, <how>, please.}", how=in_tone(pen, new)),
                      voiced(pen, new, " ".join(sentence(pen, entity, a) for a in list(entity.facts)[:2]))]  # fmt: skip
    return "facts", turns


def lower(text: str, entity: Entity) -> str:
    """Lower the first letter where it begins no name."""
    first = text.split()[0]
    if first in ("It", "Its", "You", "People", "What", "The", "In", "On", "At", "With", "A", "An", "One", "There", "To", "Such", "We", "They", "Remarkably,", "Among", "Musicians",
                 "Astronomers", "Visitors", "For", "From", "Around", "When", "Always", "Whoever", "Count", "Take", "Remember:", "Look"):  # fmt: skip
        return text[0].lower() + text[1:]
    return text


def glue(answer: str, entity: Entity) -> str:
    """Join sentences behind connectives ("Also, \\0It eats" becomes "Also, it eats")."""
    head, *rest = answer.split("\0")
    for text in rest:
        head += text if head.rstrip().endswith(".") else lower(text, entity)
    return " ".join(head.split())


def compare(pen: Pen) -> tuple[str, list[str]]:
    """Two things side by side: prose or a table."""
    kind = pen.pick(list(KINDS))
    a, b = pen.sample(KINDS[kind], 2)
    attributes = pen.sample(list(a.facts), pen.between(1, 3))
    voice = choose(pen, 0.6)
    table = pen.chance(0.3)
    names = {"a": the(a), "b": the(b)}
    prompt = pen.ask(
        "{Compare <a> {and|with} <b>.|What is the difference between <a> and <b>?|How do <a> and <b> differ?|<a> or <b>: {how do they differ|what sets them apart}?}",
        **names,
    )
    label = {"home": "habitat", "people": "population in millions", "weight": "weight in kilograms", "kind_of": "type", "known": "known for", "made": "ingredients", "care": "advice", "number": "atomic number",
             "part": "parts", "needs": "demands", "user": "users", "group": "animal group", "played": "how it is played", "music": "where it is heard", "eaten": "how it is eaten", "year": "length of year"}  # fmt: skip
    topics = [label.get(attribute, attribute) for attribute in attributes]
    if table:
        prompt = pen.ask(
            "{Make a table that compares <a> and <b>|Compare <a> and <b> in a table|Put <a> and <b> side by side in a markdown table}: <t>.",
            **names,
            t=join(topics),
        )
        rows = [f"| | {a.name} | {b.name} |", "| --- | --- | --- |"]
        rows += [f"| {topic} | {a[attribute]} | {b[attribute]} |" for topic, attribute in zip(topics, attributes)]
        return "compare", [prompt, "\n".join(rows)]
    prompt += " " + pen.ask("{Look at|Think of|Consider|I care about} <t>.", t=join(topics))
    pen.cue(voice, a.name, b.name)
    text = ""
    for attribute in attributes:
        first, second = lower(state(pen, a, attribute), a), lower(state(pen, b, attribute), b)
        first = first.replace(" it ", f" {the(a)} ", 1) if first[:3] != "it " else the(a) + first[2:]
        second = second.replace(" it ", f" {the(b)} ", 1) if second[:3] != "it " else the(b) + second[2:]
        first = first if a.name in first or first.startswith("its ") else f"for {the(a)}, {first}"
        second = second if b.name in second or second.startswith("its ") else f"for {the(b)}, {second}"
        first = f"{possessive(a)} {first[4:]}" if first.startswith("its ") else first
        second = f"{possessive(b)} {second[4:]}" if second.startswith("its ") else second
        if a[attribute] == b[attribute]:
            text += (
                pen.say(
                    "{Here they are alike: |No difference here: |In one thing they agree: }<f>, and the same is true of <b>. ",
                    f=first,
                    b=the(b),
                )
                + " "
            )
        else:
            text += pen.say("<f>{, while |, whereas |, but |; }<s>.", f=first, s=second) + " "
    return "compare", [request(pen, prompt, voice), voiced(pen, voice, text.strip())]


def possessive(entity: Entity) -> str:
    """Return "the lion's"."""
    return the(entity) + ("'" if entity.name.endswith("s") else "'s")


NUMERIC = [("animal", "weight", "heavier", "heaviest", "kilograms"), ("country", "people", "larger in population", "most populous", "million people"),
           ("element", "number", "higher in atomic number", "highest in atomic number", "")]  # fmt: skip


def rank(pen: Pen) -> tuple[str, list[str]]:
    """Which of these is heaviest; sort them."""
    kind, attribute, more, most, unit = pen.pick(NUMERIC)
    items = pen.sample(KINDS[kind], pen.between(2, 4))
    if len({item[attribute] for item in items}) < len(items):
        return rank(pen)
    order = sorted(items, key=lambda item: float(item[attribute]), reverse=True)
    voice = choose(pen, 0.7)
    names = join([the(item) for item in items], "or")
    pen.cue(voice, order[0].name, len(items))
    value = [f"{item[attribute]} {unit}".strip() for item in order]
    if pen.chance(0.5):
        prompt = pen.ask(
            "{Which is <m>: <n>?|<n>: which is <m>?|Tell me which is <m>, <n>.}",
            m=more if len(items) == 2 else "the " + most,
            n=names,
        )
        answer = pen.say("{<X> {is|comes first}, with {about|around|some} <v>; <y> {has|comes next with|follows with} {only|just|} <w>.|It is <x>: {about|around} <v>, "
                         "{against|compared with} <w> for <y>.|The answer is <x>, because <v> {is more than|beats} <w>{.|, the number of <y>.}}", X=the(order[0]), x=the(order[0]), v=value[0], y=the(order[1]), w=value[1])  # fmt: skip
        answer = answer.replace("only about", "about")
    else:
        up = pen.chance(0.5)
        if up:
            order, value = order[::-1], value[::-1]
        what = {"weight": "weight", "people": "population", "number": "atomic number"}[attribute]
        prompt = pen.ask(
            "{Sort by <w>, <d>: <n>.|Put these in order of <w>, <d>: <n>.|Order <n> by <w>, <d>.}",
            w=what,
            d="smallest first" if up else "largest first",
            n=join([the(item) for item in items]),
        )
        if pen.chance(0.5):
            return "rank", [
                prompt,
                "\n".join(f"{i}. {item.name} ({v})" for i, (item, v) in enumerate(zip(order, value), 1)),
            ]
        answer = pen.say(
            "{The order is|It goes|By <w>, that gives|From one end to the other:} <o>.",
            w=what,
            o=join([f"{the(item)} ({v})" for item, v in zip(order, value)], "and {then|finally|last}").replace(
                "{then|finally|last}", pen.raw("{then|finally|last}")
            ),
        )
    return "rank", [request(pen, prompt, voice), voiced(pen, voice, answer)]


def riddle(pen: Pen) -> tuple[str, list[str]]:
    """Guess the thing from what is said, or check a claim."""
    entity = pen.pick(EVERYTHING)
    attributes = pen.sample(list(entity.facts), min(3, len(entity.facts)))
    voice = choose(pen, 0.7)
    if pen.chance(0.5):
        clues = " ".join(
            pen.ask(ABOUT[entity.kind][a], x="it", X="it", one="it", **entity.facts).replace("of it is", "is") + "."
            for a in attributes
        )
        prompt = pen.ask(
            "{What am I thinking of?|Guess the <k>.|Which <k> is this?|A riddle for you.} <c>", k=entity.kind, c=clues
        )
        pen.cue(voice, entity.name, attributes[0])
        answer = pen.say("{It is|That must be|You are thinking of|The answer is} <o>. {The clue was|What gave it away was|I knew it by} the {<a>|part about the <a>|hint on the <a>}.",
                         o=one(entity), a={"known": "fame", "people": "population", "made": "ingredients", "kind_of": "type", "played": "way of playing", "eaten": "way of eating", "user": "users", "part": "parts", "needs": "demands", "care": "advice"}.get(attributes[0], attributes[0]))  # fmt: skip
        return "riddle", [request(pen, prompt, voice), voiced(pen, voice, answer)]
    attribute = attributes[0]
    other = pen.pick(KINDS[entity.kind])
    true = entity[attribute] == other[attribute]
    pen.cue("claim")
    claim = pen.ask(
        ABOUT[entity.kind][attribute],
        x=the(entity),
        X=the(entity),
        one=one(entity),
        **{**entity.facts, attribute: other[attribute]},
    )
    if entity.name.lower() not in claim.lower():
        claim = f"{the(entity)}: {lower(claim[0].upper() + claim[1:], entity)}"
    prompt = pen.ask(
        "{True or false? <c>.|Is this right? <c>.|My friend says: <c>. Is that so?|Check this: <c>.|<c>. Correct?}",
        c=claim,
    )
    pen.cue(voice, entity.name, attribute)
    answer = (pen.say("{Yes|That is true|Right|Correct}{, |. }{indeed|that is so|well known}.").replace(". Indeed", ". Indeed") if true else
              pen.raw("{No.|That is false.|Not quite.|Wrong.|I am afraid not.}") + " " + sentence(pen, entity, attribute))  # fmt: skip
    if true:
        answer = pen.raw("{Yes.|That is true.|Right.|Correct.}") + " " + sentence(pen, entity, attribute)
    return "riddle", [request(pen, prompt, voice), voiced(pen, voice, answer)]


def belong(pen: Pen) -> tuple[str, list[str]]:
    """Odd one out, or sort things into groups."""
    first, second = pen.sample(list(KINDS), 2)
    group = {"country": "countries", "planet": "planets", "food": "foods"}
    n, m = pen.between(2, 4), pen.between(1, 3)
    a, b = pen.sample(KINDS[first], n), pen.sample(KINDS[second], m)
    items = [e.name for e in a + b]
    pen.rng.shuffle(items)
    names_a, names_b = group.get(first, plural(first)), group.get(second, plural(second))
    pen.cue(first, second, items[0])
    if m == 1 and n > 2:
        prompt = pen.ask(
            "{Which does not belong: <i>?|Find the odd one out: <i>.|<i>: which one is the odd one out?}", i=join(items)
        )
        answer = pen.say("{<b> {does not belong|is the odd one out}: it is a(n) <kb>, {and|while} the {others|rest} are <ka>.|The {others|rest} are <ka>, {but|whereas} <b> is a(n) <kb>.|All {but|except} <b> are <ka>; "
                         "<b> is a(n) <kb>.}", b=b[0].name, ka=names_a, kb=second)  # fmt: skip
        return "groups", [prompt, answer]
    prompt = pen.ask(
        "{Sort into <a> and <b>: <i>.|Which of these are <a> and which are <b>? <i>.|Group these as <a> or <b>: <i>.}",
        a=names_a,
        b=names_b,
        i=join(items),
    )
    in_a, in_b = ([i for i in items if i in [e.name for e in a]], [i for i in items if i in [e.name for e in b]])
    if set(in_a) & set(in_b):
        return belong(pen)
    answer = pen.say("{<A>: <x>. <B>: <y>.|The <a> {are|here are} <x>; the <b> {are|here are} <y>.|<x> {belong to|count among} the <a>, {and|while} <y> {belong to|are among} the <b>.}", A=names_a.capitalize(), B=names_b.capitalize(), a=names_a,
                     b=names_b, x=join(in_a), y=join(in_b))  # fmt: skip
    if len(in_a) == 1:
        answer = (
            answer.replace(f"{in_a[0]} belong to", f"{in_a[0]} belongs to")
            .replace(f"{in_a[0]} count ", f"{in_a[0]} counts ")
            .replace(f"{in_a[0].capitalize()} count", f"{in_a[0].capitalize()} counts")
        )
    if len(in_b) == 1:
        answer = (
            answer.replace(f"{in_b[0]} belong to", f"{in_b[0]} belongs to")
            .replace(f"{in_b[0]} are among", f"{in_b[0]} is among")
            .replace(f"the {names_b} are {in_b[0]}", f"the only one of the {names_b} is {in_b[0]}")
            .replace(f"the {names_b} here are {in_b[0]}", f"the only one of the {names_b} is {in_b[0]}")
        )
    return "groups", [prompt, answer]


FAMILIES = [(describe, 7), (compare, 4), (rank, 2), (riddle, 3), (belong, 1.5)]
