"""Everyday help: recipes from ingredients, packing lists, plans for a day, advice."""

from .dates import clock
from .grammar import Pen, count, join
from .names import PEOPLE, pronouns
from .voices import choose, request, voiced

BASES = {"soup": ("{simmer|cook gently}", 25, "pot"), "salad": ("{toss|mix well}", 5, "bowl"), "omelette": ("{fry|cook}", 8, "pan"), "stew": ("{simmer|let it bubble}", 60, "pot"), "curry": ("{simmer|cook}", 30, "pan"), "pie": ("bake", 45, "dish"),
         "pasta": ("{boil|cook}", 12, "pot"), "pancakes": ("{fry|bake}", 10, "pan"), "risotto": ("{stir|simmer}", 22, "pot"), "sandwich": ("{toast|grill}", 6, "pan")}  # fmt: skip
INGREDIENTS = {"carrots": "slice", "onions": "chop", "potatoes": "peel", "tomatoes": "dice", "mushrooms": "slice", "spinach": "wash", "beans": "rinse", "peppers": "cut", "leeks": "wash", "peas": "shell", "cheese": "grate", "garlic": "crush", "apples": "core",
               "lentils": "rinse", "courgettes": "slice", "pumpkin": "cube"}  # fmt: skip
SPICES = ["salt and pepper", "fresh basil", "a little cumin", "lemon juice", "paprika", "thyme", "a pinch of nutmeg",
          "chives", "ginger", "mint"]  # fmt: skip


def recipe(pen: Pen) -> tuple[str, list[str]]:
    """A recipe for a dish from given ingredients, for a number of people."""
    base = pen.pick(list(BASES))
    verb, minutes, pot = BASES[base]
    items = pen.sample(list(INGREDIENTS), pen.between(2, 3))
    spice, people = pen.pick(SPICES), pen.between(1, 8)
    minutes += 5 * pen.between(0, 2)
    voice = choose(pen, 0.5)
    steps = pen.chance(0.4)
    prompt = pen.ask(
        "{How do I make|Give me a recipe for|I want to cook|Tell me how to make} {a(n) |}<b> {with|from|using} <i>, {seasoned with|and} <s>, for <n>? {I have <m> minutes for the cooking.|It may cook for <m> minutes.|Cooking time: <m> minutes.}",
        b=base,
        i=join(items),
        s=spice,
        n=count(people, "person"),
        m=minutes,
    )
    for wrong in ("a pasta", "a pancakes", "a curry", "a soup", "a stew", "a salad", "a risotto"):
        prompt = prompt.replace(wrong + " ", wrong[2:] + " ")
    prompt = prompt.replace(", and " + spice, " and " + spice) if prompt.startswith("Give me") or True else prompt
    if not prompt.startswith("How"):
        prompt = prompt.replace("?", ".", 1)
    if steps:
        prompt += pen.ask(" {Number the steps.|As numbered steps.|In numbered steps, please.}")
    pen.cue(voice, base, items[0], spice)
    first = [f"{INGREDIENTS[item]} the {item}" for item in items]
    lines = [pen.say("{First |To begin, |}<x>.", x=join(first)), pen.say("{Put {everything|all of it}|All of it goes} into {a|your} <p>{ with {some|a little} <l>|}.", p=pot, l={"bowl": "oil", "pan": "butter", "pot": "water", "dish": "pastry"}[pot]),
             pen.say("<v> {it |}for <m> minutes{, and|. Then} {add|stir in|season with} <s>{.| to taste.}", v=pen.raw(verb), m=minutes, s=spice), pen.say("{Serve|Share|Divide} it {hot|at once|warm} {among|between} <n>.".replace("{hot|at once|warm}", "cold" if base == "salad" else "{hot|at once|warm}").replace("{Serve|Share|Divide} it", "{Share|Divide} it") if people > 1 else "{Serve|Eat} it " + ("fresh" if base == "salad" else "{hot|at once|warm}") + ". {One portion is enough.|It is for you alone.|Enjoy!}", n=f"{people} people")]  # fmt: skip
    lines[3] = lines[3].replace("between", "among") if people > 2 else lines[3].replace("among", "between")
    for verb_ in ("Let it bubble it", "let it bubble it"):
        lines[2] = lines[2].replace(verb_, verb_[:-3])
    lines[2] = lines[2].replace("Mix well it", "Mix it well").replace("Cook gently it", "Cook it gently")
    answer = (
        "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1)) if steps else voiced(pen, voice, " ".join(lines))
    )
    turns = [prompt if steps else request(pen, prompt, voice), answer]
    if pen.chance(0.45):
        swap, new = pen.pick(items), pen.pick([i for i in INGREDIENTS if i not in items])
        pen.cue(new, base)
        turns += [pen.ask("{I have no <a>.|I do not like <a>.|What can I use instead of <a>?|<a> are out. What now?}".replace("<a> are out. What now?", "No <a> today. What now?"), a=swap),
                  pen.say("{Take|Use|Try} <n> instead: <v> {the <n>|<n>} and {go on as before|follow the same steps}.|{<n> {work|are fine} too.|You can replace <a> with <n>.} {Just|Simply} <v> the <n>{ first|}.".replace("{work|are fine} too", "will {work|do} too"), n=new, a=swap, v=INGREDIENTS[new])]  # fmt: skip
    return "recipes", turns


TRIPS = {"camping": ["a tent", "a sleeping bag", "matches", "a torch"], "the beach": ["a swimsuit", "sun cream", "a towel", "a hat"], "skiing": ["warm gloves", "goggles", "thick socks", "a helmet"], "a city trip": ["a map", "good shoes", "a camera", "a phrase book"],
         "a wedding": ["a present", "polished shoes", "a card", "a smart jacket"], "hospital": ["pyjamas", "slippers", "a book", "a toothbrush"], "hiking": ["boots", "a water bottle", "a map", "a rain jacket"], "a long flight": ["a pillow", "a passport", "earplugs", "a novel"],
         "a sailing trip": ["a life jacket", "a rope", "gloves", "pills against seasickness"], "school camp": ["a pencil case", "a torch", "playing cards", "a raincoat"]}  # fmt: skip
EXTRAS = {
    "rain": "an umbrella",
    "cold": "a woollen hat",
    "heat": "plenty of water",
    "mosquitoes": "insect spray",
    "a baby": "nappies",
    "a dog": "dog food",
    "work": "a laptop",
    "reading": "two books",
    "music": "headphones",
    "a sore back": "a soft cushion",
}


def packing(pen: Pen) -> tuple[str, list[str]]:
    """What to pack for a trip under certain conditions."""
    name, he = pronouns(pen)
    trip = pen.pick(list(TRIPS))
    extra = pen.sample(list(EXTRAS), pen.between(1, 2))
    days, number = pen.between(2, 14), pen.between(2, 4)
    voice = choose(pen, 0.5)
    bullets = pen.chance(0.35)
    going = {
        "the beach": "goes to the beach",
        "hospital": "must go to hospital",
        "camping": "goes camping",
        "skiing": "goes skiing",
        "hiking": "goes hiking",
        "school camp": "goes to school camp",
    }.get(trip, f"sets off for {trip}")
    prompt = pen.ask(
        "{<name> <going> for <d>. {What should <he> pack?|What belongs in the bag?|Make a packing list.} {Think of|Remember|Keep in mind} <e>.|What does <name> need? <he> <going> for <d>, {and must reckon with|and will meet} <e>.|Packing list for <name>, who <going> for <d>. {Consider|Mind} <e>.}",
        name=name,
        he=he,
        going=going,
        d=count(days, "day"),
        e=join(extra),
    )
    prompt += pen.ask(
        " {Name <n> things for the trip itself.|<n> things, plus the extras.|Start with <n> basics.}",
        n={2: "two", 3: "three", 4: "four"}[number],
    )
    things, more = TRIPS[trip][:number], [EXTRAS[e] for e in extra]
    pen.cue(voice, trip, extra[0], name)
    if bullets:
        prompt += pen.ask(" {As a list.|Bullets, please.|Use bullet points.}")
        return "packing", [
            prompt,
            "\n".join(f"- {thing}" for thing in things)
            + "\n"
            + "\n".join(f"- {EXTRAS[e]} (because of {e})" for e in extra),
        ]
    clothes = pen.raw("{clothes for <d>|<d> of clothes|enough shirts for <d>}", d=count(days, "day"))
    answer = pen.say("{<name> needs <t>{. <he> {also needs|should also take} <c>|, and of course <c>}. {Because of <e>, add <m>|<m> will help with <e>}.|{Pack|Start with} <t>. {Then|Next} {add|come} <m>, {because of|on account of} <e>{.|; and do not forget <c>.}|In the bag belong <t>{; because of <e>, also <m>|, and, {thinking of|for} <e>, <m>}. {With|Together with} <c>, {<name> is ready|that is all}.}",
                     name=name, he=he, t=join(things), c=clothes, d=count(days, "day"), e=join(extra), m=join(more))  # fmt: skip
    return "packing", [request(pen, prompt, voice), voiced(pen, voice, answer)]


TASKS = {
    "clean the kitchen": 30,
    "walk the dog": 45,
    "buy bread": 20,
    "write a report": 90,
    "call the dentist": 10,
    "water the plants": 15,
    "wash the car": 40,
    "practise the piano": 60,
    "cook lunch": 50,
    "answer letters": 35,
    "mend the fence": 75,
    "read the paper": 25,
    "go for a run": 40,
    "tidy the desk": 15,
}


def plan(pen: Pen) -> tuple[str, list[str]]:
    """A timetable for given tasks from a given hour."""
    tasks = pen.sample(list(TASKS), pen.between(2, 4))
    lengths = [TASKS[t] + 5 * pen.between(-1, 2) for t in tasks]
    start, pause = pen.between(7 * 4, 16 * 4) * 15, pen.pick([0, 0, 10, 15])
    name, he = pronouns(pen)
    given = join([f"{t} ({n} minutes)" for t, n in zip(tasks, lengths)])
    voice = choose(pen, 0.6)
    form = pen.pick(["list", "prose", "end"])
    prompt = pen.ask(
        "{<name> wants to <g>{, starting|. <he> starts} at <s>.|Plan for <name>, from <s> on: <g>.|From <s>, <name> has to <g>.}",
        name=name,
        he=he,
        g=given,
        s=clock(start),
    )
    prompt += (
        pen.ask(
            " {A pause of <p> minutes comes after each task.|There are <p> minutes of rest between the tasks.}", p=pause
        )
        if pause
        else ""
    )
    at, times = start, []
    for n in lengths:
        times.append((at, at + n))
        at += n + pause
    pen.cue(voice, tasks[0], tasks[-1], len(tasks), name)
    if form == "list":
        prompt += pen.ask(" {Make a timetable.|Write a schedule.|List the times.}")
        return "plans", [prompt, "\n".join(f"- {clock(a)} to {clock(b)}: {t}" for t, (a, b) in zip(tasks, times))]
    if form == "end":
        prompt += pen.ask(" {When is <he> done?|At what time is everything finished?|When will <he> be free?}", he=he)
        total = times[-1][1] - start
        answer = pen.say(
            "{<name> is {done|free} at <e>{, after <t> minutes|}.|{The tasks take|All that takes} <t> minutes{ in all|}, so <he> {is done|finishes} at <e>.|At <e>: {the last task|to <l>, <he>} {begins|starts} at <b>.}",
            name=name,
            he=he,
            e=clock(times[-1][1]),
            t=total,
            l=tasks[-1],
            b=clock(times[-1][0]),
        )
        answer = (
            answer.replace(f"to {tasks[-1]}, {he} begins", "the last task begins")
            .replace(f"to {tasks[-1]}, {he} starts", "the last task starts")
            .replace("The tasks take", "It takes")
            if pause
            else answer.replace(f"to {tasks[-1]}, {he}", f"to {tasks[-1]}, {he}")
        )
        return "plans", [request(pen, prompt, voice), voiced(pen, voice, answer)]
    prompt += pen.ask(
        " {Describe the day in sentences.|Tell me in full sentences when what happens.|Write it as prose.}"
    )
    middle = [
        "{After that|Next|Then}, {from <a> to <b>|at <a>}, {it is time to <t>|<he> {can|will} <t>}.",
        "{From <a> on|At <a>}, <he> {has to|will} <t>{ until <b>|}.",
        "{Finally|Last}, {from <a>|at <a>} {it is time to|<he> can} <t>, and {at <b> the day is done|that ends at <b>}.",
    ]
    lines = [
        pen.say(
            "{At <a>|From <a> to <b>}, <name> {begins: <he> will|has to|will} <t>.",
            a=clock(times[0][0]),
            b=clock(times[0][1]),
            t=tasks[0],
            name=name,
            he=he,
        )
    ]
    for i, (t, (a, b)) in enumerate(list(zip(tasks, times))[1:], 1):
        pattern = middle[2] if i == len(tasks) - 1 else middle[i % 2]
        lines.append(pen.say(pattern, a=clock(a), b=clock(b), t=t, name=name, he=he))
    return "plans", [request(pen, prompt, voice), voiced(pen, voice, " ".join(lines))]


ADVICE = {
    "sleep better": ["{go|try to go} to bed at the same time", "{leave your telephone|keep screens} in another room", "{drink no|avoid} coffee after lunch", "{open|air with} the window {for a while|before bed}"],
    "save money": ["write down {every cent|what you spend}", "cook at home {more often|on weekdays}", "{wait|sleep} a night before you buy", "{lend and borrow|repair} things instead of buying new ones"],
    "learn a language": ["{speak|talk to yourself} a little every day", "{watch films|listen to songs} in that language", "{write new words on cards|keep a book of words}", "{find|look for} a partner to talk to"],
    "be less nervous": ["{breathe|breathe out} slowly and deeply", "{practise|rehearse} in front of a friend", "{think of|remember} what went well before", "{move|take a short walk} beforehand"],
    "read more": ["{carry|keep} a book in your bag", "read {ten pages|a chapter} before sleep", "{stop|put away} books that bore you", "{join|start} a reading circle"],
    "keep a houseplant alive": ["{water it only|give it water} when the soil is dry", "{put|place} it near a bright window", "{turn|dust} it now and then", "{choose|take} a pot with a hole"],
    "make friends": ["{ask|put} questions and {listen|wait for the answer}", "{join|look for} a club that you like", "{invite|ask} people for {tea|a walk}", "{remember|write down} birthdays"],
    "get fit": ["{take the stairs|walk} whenever you can", "{start|begin} with ten minutes a day", "{exercise|train} with a friend", "{drink|have} enough water"],
    "tidy a room": ["{begin|start} with one corner", "{make|sort things into} three piles: keep, give away, throw away", "{give|find} every thing {its own place|a home}", "{play|put on} some music"],
    "study for an exam": ["{make|draw up} a plan for each day", "{explain|teach} the matter to somebody", "{take|allow yourself} short breaks", "{solve|work through} old papers"],
    "eat more vegetables": ["{put|hide} some in every {soup|sauce}", "{try|buy} one new kind each week", "{keep|have} cut carrots ready", "{roast|grill} them with a little oil"],
    "write a good letter": ["{say|state} first why you write", "{use|prefer} short sentences", "{read|speak} it aloud before you send it", "{thank|greet} the reader at the end"],
}  # fmt: skip


def advice(pen: Pen) -> tuple[str, list[str]]:
    """Tips for an everyday aim, so many and in such a form."""
    aim = pen.pick(list(ADVICE))
    number = pen.between(1, 4)
    chosen = sorted(pen.sample(range(4), number))
    voice = choose(pen, 0.3)
    name, he = pen.pick(PEOPLE)
    bullets = pen.chance(0.3) and number > 1
    amount = {1: "one tip", 2: "two tips", 3: "three tips", 4: "four tips"}[number]
    start = pen.pick(["first", "last"])
    chosen = list(range(number)) if start == "first" else list(range(4 - number, 4))
    who = pen.chance(0.5)
    prompt = pen.ask(
        "{How can I <a>?|I want to <a>.|What helps me to <a>?|I would like to <a>, but I fail.} {Give me <n>.|<n>, please.|I need <n>.}"
        if not who
        else "{<name> wants to <a>.|How can <name> <a>?|My friend <name> would like to <a>.} {Give <him> <n>.|<n>, please.|<n> for <him>, please.}",
        a=aim,
        n=amount,
        name=name,
        him="him" if he == "he" else "her",
    )
    if start == "last" and number < 4:
        prompt += pen.ask(" {Something unusual.|Nothing too obvious.|I know the usual ones.}")
    else:
        chosen = list(range(number))
    if bullets:
        prompt += pen.ask(" {Use bullets.|As a list.}")
    pen.cue(voice, aim, number, name if who else "me")
    tips = [pen.raw(ADVICE[aim][i]) for i in chosen]
    if bullets:
        return "advice", [prompt, "\n".join(f"- {t[0].upper()}{t[1:]}." for t in tips)]
    joiners = ["{Then|Next|Also}, ", "{Third|And then|Besides}, ", "{Finally|At last|Last of all}, "]
    answer = pen.say(
        "{|To begin with, |First of all, |My advice{ to <name>|}: |If you {want|wish} to <a>, }".replace(
            "{ to <name>|}", " to <name>" if who else ""
        )
        + "<t>.",
        t=tips[0],
        a=aim,
        name=name,
    )
    for joiner, tip in zip(joiners, tips[1:]):
        answer += " " + pen.say(joiner + "<t>.", t=tip)
    turns = [request(pen, prompt, voice), voiced(pen, voice, answer)]
    if pen.chance(0.45):
        rest = [i for i in range(4) if i not in chosen]
        if rest:
            pen.cue(aim, rest[0])
            turns += [
                pen.ask("{One more?|Anything else?|And another one?|What else?}"),
                pen.say("{Yes: |You could also |You might |One more: }<t>.", t=pen.raw(ADVICE[aim][rest[0]])),
            ]
    return "advice", turns


FAMILIES = [(recipe, 4), (packing, 3), (plan, 3), (advice, 3)]
