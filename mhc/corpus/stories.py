"""Short stories with the hero, thing, place and mood that the prompt asks for, in several plots."""

from .grammar import Pen, join
from .names import OBJECT, OWNER, pronouns
from .voices import TONES, in_tone

THINGS = ["red kite", "silver key", "old map", "blue umbrella", "golden coin", "wooden boat", "paper dragon", "music box", "green lantern", "torn letter", "glass marble", "magic stone",
          "woollen hat", "broken clock", "small drum", "shiny shell", "striped scarf", "yellow bucket", "empty jar", "tin soldier", "rusty bell", "toy bear", "painted egg", "long rope"]  # fmt: skip
PLACES = {"forest": "in", "market": "at", "harbour": "at", "library": "in", "garden": "in", "old mill": "at", "beach": "on", "castle": "in", "mountain": "on", "station": "at", "school": "at",
          "lighthouse": "in", "bakery": "in", "river": "by", "farm": "on", "museum": "in", "bridge": "on", "cellar": "in"}  # fmt: skip
HELPERS = ["fox", "owl", "baker", "grandmother", "fisherman", "gardener", "cat", "mouse", "sailor", "neighbour",
           "teacher", "crow", "hedgehog", "shepherd", "dog", "clockmaker"]  # fmt: skip
TRAITS = {"shy": "{spoke|said} very little", "brave": "was afraid of {nothing|no one}", "curious": "asked {a hundred questions a day|about everything}", "lazy": "liked to sleep {late|until noon}", "clever": "could solve any puzzle",
          "kind": "{shared everything|helped everyone}", "stubborn": "never gave up", "cheerful": "{sang|laughed} all day long", "forgetful": "lost {something every day|everything}", "patient": "could wait {for hours|all day}"}  # fmt: skip
WEATHER = {"rainy": "{rain fell on the roofs|it rained and rained|the rain would not stop}", "windy": "{the wind shook the trees|a strong wind blew|the wind was wild}", "sunny": "{the sun was shining|the sky was bright and blue}",
           "snowy": "{snow covered everything|it was snowing softly}", "foggy": "{fog hid the houses|thick fog lay over the land}", "stormy": "{thunder rolled|a storm was coming}", "cold": "{ice lay on the puddles|the air was icy}"}  # fmt: skip

PLOTS = {
    "lost": [
        "{But one day|Then, all at once,|But suddenly} the <thing> {was gone|had disappeared|was nowhere to be found}. {<he> looked {everywhere|under the bed and behind the door}|<hero> searched {the whole house|high and low} and {found nothing|nearly cried}}.",
        "{At last|In the end|Then} a(n) <helper> {said|called|whispered}: \"{I saw it|Look|Go and look} <at> the <place>!\" {So <hero> ran there, and there it lay|Quickly <hero> thanked the <helper>, hurried off and found it|Off went <hero>, and sure enough, there it was}.",
    ],
    "gift": [
        "{A(n) <helper> {lived|worked} <at> the <place> and {was often lonely|had no friends|never smiled}.|<at> the <place> {lived|there was} a(n) <helper> {who never smiled|without any friends}.} {<hero> felt sorry|This made <hero> sad|<he> could not bear it}.",
        "{So|One evening} <he> {gave away <his> <thing>|took <his> <thing> and put it {before|at} the door|brought the <helper> <his> <thing>}. {The <helper> {smiled for the first time|laughed with joy}|\"For me?\" {asked|cried} the <helper>}, {and from then on they were friends|and they drank tea together}.",
    ],
    "fear": [
        "{<hero> had to {go to|cross} the <place>, {but|and} {<he> was afraid of the dark|strange noises came from it}.|Strange {noises|sounds} came from the <place>, and {nobody dared to go there|everyone was frightened}.} {Still, <he> took <his> <thing>|With the <thing> in <his> hand, <he> set off}.",
        "{Something moved|A shadow moved|There was a {rustle|crash}}. {It was only|But it was just} a(n) <helper>, {who was even more afraid|who had lost the way}! {They laughed|Both laughed} {and|, and then} {walked home together|shared some bread}.",
    ],
    "build": [
        "{The <thing> {was broken|had fallen to pieces}|Somebody had broken the <thing>}, {and nobody could mend it|so everyone was sad}. {<hero> carried the pieces to|<he> went with it to} a(n) <helper> <at> the <place>.",
        "{\"We need {patience|time} and glue,\" said the <helper>.|The <helper> {scratched his head|thought for a while} and {fetched some glue|smiled}.} {They worked {all night|until the moon rose}|For three days they worked}, {and {then|at last} the <thing> was {better|more beautiful} than before|until it was as good as new}.",
    ],
    "trade": [
        "{<at> the <place> <he> met|Then <he> met} a(n) <helper> who {had nothing to eat|was very hungry|wanted the <thing>}. {\"I will give you a {secret|song|story} for it,\" said the <helper>.|\"Will you swap?\" asked the <helper>.}",
        "{<hero> {thought it over|hesitated} and {agreed|said yes}|After a moment, <he> agreed}. {The {secret|song|story} was so {good|funny} that|And what <he> got was so beautiful that} {<he> never missed the <thing>|people came from far away to hear it}.",
    ],
}  # fmt: skip
ENDS = {"happy": "{And everybody was happy.|They danced until night.|It was the best day of the year.|That night, <hero> fell asleep with a smile.|<hero> never forgot that day.}",
        "funny": "{Only the <helper> had {soup|jam} on the nose.|And then <hero> sat on a cake.|The <helper> laughed so much that the hat fell into the soup.|But on the way home, <he> lost a shoe!}",
        "sad": "{But the next day, the <helper> was gone for ever.|Yet <hero> cried a little that night.|Still, <he> never saw the <place> again.|Nobody ever knew why <he> was so quiet afterwards.}",
        "surprising": "{And the <helper>? It was a {king|queen} in disguise!|Then <hero> woke up: it had all been a dream.|But whose footprints were those in the <weather> evening?|Inside the <thing> there was a tiny door.}",
        "wise": "{So <hero> learned that {sharing|courage|patience} is worth more than gold.|\"Kindness comes back,\" said the <helper>.|Since then <he> says: {look twice|ask first}, then {act|run}.|And <he> understood that small things can be great.}"}  # fmt: skip


def _body(pen: Pen, slots: dict, plot: str, trait: str, weather: str, end: str) -> list[str]:
    opening = pen.say(
        "{{Once {upon a time |}there was|There once was|In a small town lived} a <trait> {girl|child} called <hero>, who <habit>. <he> {owned|had} a(n) <thing>{ and loved it very much|, <his> dearest treasure}."
        "|<hero> was <trait> and <habit>. {What <he> loved {best|most} was|<his> greatest treasure was} a(n) <thing>."
        "|It was a <weather> day and <sky>. {<trait> <hero>|<hero>, who was <trait>,} {sat at the window|stood at the door} with {a(n)|the} <thing>{| in <his> hand}."
        "|{One|On a} <weather> morning, when <sky>, <hero> {found|was given} a(n) <thing>. <he> was a <trait> {girl|child} {who|and} <habit>.}".replace("{girl|child}", "girl" if slots["he"] == "she" else "boy"),
        **slots, habit=pen.raw(TRAITS[trait]), sky=pen.raw(WEATHER[weather]))  # fmt: skip
    return [opening, *(pen.say(part, **slots) for part in PLOTS[plot]), pen.say(ENDS[end], **slots)]


PLOT_ASKED = {"lost": "{something gets lost|a thing disappears|a lost thing is found again}", "gift": "{somebody gives a present|a gift makes a friend|a present changes everything}", "fear": "{someone overcomes a fear|there is a scare|the hero must be brave}",
              "build": "{something is repaired|a broken thing is mended}", "trade": "{two people swap something|there is a trade|something is exchanged}"}  # fmt: skip


def story(pen: Pen) -> tuple[str, list[str]]:
    """A story from given parts, and changes to it."""
    hero, he = pronouns(pen)
    thing, place, helper = pen.pick(THINGS), pen.pick(list(PLACES)), pen.pick(HELPERS)
    trait, weather, plot, end = (
        pen.pick(list(TRAITS)),
        pen.pick(list(WEATHER)),
        pen.pick(list(PLOTS)),
        pen.pick(list(ENDS)),
    )
    slots = dict(
        hero=hero,
        he=he,
        his=OWNER[he],
        him=OBJECT[he],
        thing=thing,
        place=place,
        at=PLACES[place],
        helper=helper,
        trait=trait,
        weather=weather,
    )
    details = [pen.ask("{a <thing>|with a <thing> in it}", thing=thing), f"a {helper}", f"the {place}"]
    details[0] = f"a(n) {thing}"
    details[1] = f"a(n) {helper}"
    pen.rng.shuffle(details)
    prompt = pen.ask(
        "{{Write|Tell me|Make up|I would like} a <end> story about <hero>, who is <trait>. {It must contain|Use|Include} <d>. {In it, <p>.|The plot: <p>.}{| The weather is <weather>.}"
        "|{Write|Tell} a {short |little |}story {in which|where} <p>. The hero is <hero>, a <trait> <kid>. {Other things in it|Also use|It should mention}: <d>. {It should be <end>.|Give it a <end> ending.|The end: <end>.}"
        "|<hero> is <trait>. It is a <weather> day. {Write a story in which <p>, with <d>|Tell a story with <d>, and <p>}. {Make the end <end>.|<end> ending, please.}}",
        **slots, end=end, d=join(details), p=pen.ask(PLOT_ASKED[plot]).replace("Somebody", "somebody"), kid="girl" if he == "she" else "boy")  # fmt: skip
    prompt = _decapitalise(prompt)
    pen.cue(hero, thing, place + trait, helper, end + weather)
    parts = _body(pen, slots, plot, trait, weather, end)
    if pen.chance(0.12):
        prompt += pen.ask(" {Keep it very short.|Only the beginning, please.|Just the first two sentences or so.}")
        parts = parts[:2] if "beginning" in prompt or "first" in prompt else [parts[0], parts[3]]
    turns = [prompt, " ".join(parts)]
    if pen.chance(0.45):
        kind = pen.between(0, 3)
        if kind == 0:
            new = pen.pick([e for e in ENDS if e != end])
            pen.cue(hero, thing, new)
            turns += [
                pen.ask("{Give me a <e> ending instead.|Change the end: make it <e>.|And with a <e> end?}", e=new),
                pen.say(ENDS[new], **slots),
            ]
        elif kind == 1:
            pen.cue(hero, place)
            turns += [
                pen.ask("{What is a good title?|Give it a title.|Which title would fit?}"),
                pen.say(
                    "{<Hero> and the <thing>|The <thing> {of|at} the <place>|<Hero>'s <thing>|The <helper> {of|from} the <place>|A <weather> day {with|for} <Hero>}",
                    **slots,
                    Hero=hero,
                ).replace("<", ""),
            ]
        elif kind == 2:
            pen.cue(hero, trait)
            turns += [pen.ask("{Who is the story about?|Describe the hero in one sentence.|What do we know about <hero>?}", hero=hero),
                      pen.say("{<hero> is {a <trait> <kid>|the <trait> hero} who {has|owns} a(n) <thing>{ and meets a(n) <helper>|}.|It is about <hero>, {who is <trait>|a <trait> <kid>}{ and has a(n) <thing>|}.}", kid="girl" if he == "she" else "boy", **slots)]  # fmt: skip
        else:
            voice = pen.pick([v for v in TONES if v != "plain"])
            from .voices import voiced

            pen.cue(voice, end)
            turns += [pen.ask("{Sum it up <how>.|Tell it again in two sentences, <how>.|Now the short version, <how>.}", how=in_tone(pen, voice)),
                      voiced(pen, voice, pen.say("{<hero> had a(n) <thing>, and <at> the <place> <he> met a(n) <helper>|This is how <trait> <hero>, a(n) <helper> and a(n) <thing> {met|came together} <at> the <place>|<at> the <place>, <hero> and a(n) <helper> {had to deal with|learned something from} a(n) <thing>}.", **slots))]  # fmt: skip
    return "stories", turns


OPENINGS_OF_PLOTS = ["Something", "A thing", "A lost", "A gift", "A present", "Somebody", "Someone",
                     "There is a scare", "The hero must", "A broken", "Two people", "There is a trade",
                     "Something is"]  # fmt: skip


def _decapitalise(prompt: str) -> str:
    for start in OPENINGS_OF_PLOTS:
        for before in ("In it, ", "in which ", "where ", "plot: ", "and "):
            prompt = prompt.replace(before + start, before + start[0].lower() + start[1:])
    return prompt


FAMILIES = [(story, 1)]
