"""Language: opposites, synonyms, plurals, past tense, spelling, rhymes and sentences with a word."""

from .grammar import Pen, join, plural
from .lists import WORDS
from .names import PEOPLE
from .voices import choose, request, voiced

OPPOSITES = dict(pair.split("-") for pair in ["hot-cold", "big-small", "early-late", "light-dark", "old-young", "happy-sad", "fast-slow", "rich-poor", "strong-weak", "open-closed", "full-empty", "high-low", "hard-soft", "wet-dry", "near-far", "thick-thin", "loud-quiet", "brave-cowardly", "sweet-bitter", "clean-dirty", "deep-shallow", "narrow-wide", "polite-rude", "sharp-blunt", "true-false", "smooth-rough", "cheap-expensive", "ancient-modern", "rare-common", "calm-nervous"])  # fmt: skip
SYNONYMS = dict(pair.split("-") for pair in ["big-large", "small-tiny", "happy-glad", "fast-quick", "clever-smart", "begin-start", "finish-end", "angry-furious", "tired-weary", "beautiful-lovely", "strange-odd", "rich-wealthy", "brave-courageous", "answer-reply", "buy-purchase", "shout-yell", "gift-present", "mistake-error", "choose-select", "help-assist", "hide-conceal", "jump-leap", "show-display", "speak-talk"])  # fmt: skip
PAST = dict(pair.split("-") for pair in ["go-went", "see-saw", "take-took", "write-wrote", "sing-sang", "buy-bought", "bring-brought", "think-thought", "run-ran", "swim-swam", "eat-ate", "drink-drank", "give-gave", "find-found", "teach-taught", "catch-caught", "fly-flew", "know-knew", "draw-drew", "begin-began", "walk-walked", "carry-carried", "stop-stopped", "dance-danced", "play-played", "try-tried"])  # fmt: skip
SINGULARS = ["child", "mouse", "foot", "knife", "leaf", "city", "box", "berry", "dish", "tooth", "wolf", "potato",
             "baby", "bus", "key", "cup", "loaf", "story", "goose", "shelf", "fox", "woman", "penny", "church",
             "toy"]  # fmt: skip
RHYMES = ["cat hat bat mat", "moon spoon June noon", "light night kite white", "tree bee sea key",
          "rain train chain lane", "cake lake snake rake", "house mouse blouse", "bell well shell fell",
          "king ring spring string", "star car jar far", "boat goat coat note", "sun run fun bun"]  # fmt: skip
OBJECTS = {"see": "a star", "take": "the bus", "write": "a letter", "sing": "a song", "buy": "bread", "bring": "flowers", "eat": "soup", "drink": "tea", "give": "a book away", "find": "a key", "teach": "the class", "catch": "a fish", "fly": "a kite", "know": "the answer", "draw": "a horse",
           "begin": "a new job", "carry": "the box", "stop": "the clock", "dance": "a waltz", "play": "the flute", "try": "the cake", "run": "home", "swim": "to the island", "walk": "to school", "think": "of home", "go": "to town"}  # fmt: skip


def word(pen: Pen) -> tuple[str, list[str]]:
    """One question on a word."""
    task = pen.pick(["opposite", "synonym", "past", "plural", "spell", "rhyme", "count", "sentence", "vowels"])
    voice = choose(pen, 0.35)
    name, other = (n for n, _ in pen.sample(PEOPLE, 2))
    if task in ("opposite", "synonym"):
        table = OPPOSITES if task == "opposite" else SYNONYMS
        a, b = pen.pick(list(table.items()))
        if pen.chance(0.5):
            a, b = b, a
        thing, second = pen.sample(
            ["river", "coat", "house", "road", "story", "morning", "song", "garden", "box", "dog", "street", "room"], 2
        )
        prompt = pen.ask(
            {
                "opposite": '{What is the opposite of "<a>"|Which word means the opposite of "<a>"|Give me the antonym of "<a>"}?',
                "synonym": '{What is another word for "<a>"|Which word means the same as "<a>"|Can you give me a synonym of "<a>"}?',
            }[task],
            a=a,
        ).replace('Give me the antonym of "' + a + '"?', 'Give me the antonym of "' + a + '".')
        pen.cue(voice, a, task)
        rel = "opposite" if task == "opposite" else "synonym"
        answer = pen.say(
            '{The <rel> of "<a>" is "<b>".|"<b>"{.| is the <rel> of "<a>".}|It is "<b>".|One says "<b>".}',
            rel=rel,
            a=a,
            b=b,
        )
        if task == "opposite" and pen.chance(0.6):
            prompt += pen.ask(
                " {Use both with the words <t> and <s>.|Make a sentence with both: one for a <t>, one for a <s>.}",
                t=thing,
                s=second,
            )
            answer += " " + pen.say(
                "{The <t> is <a>, {but|while|and yet} the <s> is <b>.|One <t> may be <a> and {another|a <s>} <b>.|{A|If a} <a> <t> {and a <b> <s> are not alike|meets a <b> <s>, we notice the difference}.}".replace(
                    "{A|If a} <a> <t> {and a <b> <s> are not alike|meets a <b> <s>, we notice the difference}",
                    "{A(n) <a> <t> and a(n) <b> <s> are not alike|If a(n) <a> <t> is next to a(n) <b> <s>, we notice the difference}",
                ).replace("{another|a <s>}", "a(n) <s>"),
                t=thing,
                s=second,
                a=a,
                b=b,
            )
    elif task == "past":
        a, b = pen.pick(list(PAST.items()))
        obj = OBJECTS[a]
        when = pen.pick(["yesterday", "last week", "a year ago", "on Sunday", "last summer", "in May"])
        prompt = pen.ask(
            '{What is the past tense of "<a>"? Make a sentence with <n> and "<w>".|Put into the past, with "<w>": <n> and <o> <a> <x>.|Use the past tense of "<a>" in a sentence about <n>, <w>.}',
            a=a,
            n=name,
            o=other,
            w=when,
            x=obj,
        )
        pen.cue(voice, a, when)
        who = f"{name} and {other}" if other in prompt else name
        lead = pen.raw('{The past of "<a>" is "<b>": |It is "<b>": |}', a=a, b=b) if "Put" not in prompt else ""
        answer = lead + pen.say("{<w> <o> <b> <x>.|<o> <b> <x> <w>.}", o=who, b=b, x=obj, w=when)
    elif task == "plural":
        items = pen.sample(SINGULARS, pen.between(1, 3))
        prompt = pen.ask(
            "{What is the plural of <i>?|Give me the plural of <i>.|How do you write more than one <i>?|<i>: plural, please.}",
            i=join(items),
        ).replace("How do you write more than one", "How do you write more than one")
        pen.cue(voice, items[0], len(items))
        answer = pen.say(
            "{<p>.|The {plural|plurals} {is|are} <p>.|One says <p>.|<pairs>.}".replace(
                "{plural|plurals} {is|are}", "plurals are" if len(items) > 1 else "plural is"
            ),
            p=join([plural(i) for i in items]),
            pairs=join([f"one {i}, two {plural(i)}" for i in items], "and"),
        )
    elif task in ("spell", "count", "vowels"):
        w = pen.pick(WORDS)
        second = pen.pick([x for x in WORDS if x != w])
        letter = pen.pick(w)
        n = w.count(letter)
        prompt = pen.ask(
            {
                "spell": '{Spell "<w>"{| and "<s>"}.|How do you spell "<w>"?}',
                "count": '{How many times does <l> occur in "<w>"?|How many letters has "<w>", and how often is <l> in it?|Count the letter <l> in "<w>".}',
                "vowels": '{Which vowels are in "<w>"?|Name the vowels of "<w>".|How many vowels has "<w>"?}',
            }[task],
            w=w,
            l=letter,
            s=second,
        )
        pen.cue(voice, w, task)
        times = {1: "once", 2: "twice", 3: "three times"}.get(n, f"{n} times")
        vowels = [x for x in w if x in "aeiou"]
        if task == "spell":
            both = f" and {second}: {'-'.join(second)}" if second in prompt else ""
            answer = (
                pen.raw("{It is |You spell it |Letter by letter: |}")
                + "-".join(w)
                + both.replace(" and ", ", and ")
                + "."
            )
        elif task == "count":
            answer = pen.say(
                '{The letter <l> occurs <t> in "<w>".|<t>: "<w>" is <s>.|"<w>" has <k> letters, and <l> is there <t>.}',
                l=letter,
                t=times,
                w=w,
                s="-".join(w),
                k=len(w),
            )
        else:
            answer = (
                pen.say(
                    '{It has <k>: <v>.|The vowels of "<w>" are <v>.|In "<w>" {we find|there are} <v>, so <k> in all.}',
                    k=len(vowels),
                    v=join(vowels),
                    w=w,
                )
                if len(vowels) > 1
                else f'There is only one vowel in "{w}": {vowels[0] if vowels else "y"}.'
            )
    elif task == "rhyme":
        group = pen.pick(RHYMES).split()
        a, b, c = pen.sample(group, 3)
        prompt = pen.ask(
            '{What rhymes with "<a>"?|Find <n> for "<a>".|Give me words that rhyme with "<a>".} {Use them in a line about <p>.|Add a line about <p>.}',
            a=a,
            n="rhymes",
            p=name,
        )
        pen.cue(voice, a, name)
        answer = pen.say(
            '{"<b>" and "<c>" rhyme with "<a>".|You could take "<b>" or "<c>".|Try "<b>" and "<c>".} {<n> {dreamed|sang} of a <b> and {thought of|then} a <c>.|When <n> said "<b>", {someone|an echo} answered "<c>".|<n> wrote "<b>" next to "<c>" and {smiled|was proud}.}'.replace(
                "of a <b> and {thought of|then} a <c>", '"<b>" and "<c>" to a little tune'
            ),
            a=a,
            b=b,
            c=c,
            n=name,
        )
    else:
        a, b = pen.sample(WORDS, 2)
        adjective = pen.pick(list(OPPOSITES))
        prompt = pen.ask(
            '{Write|Make} a sentence with the words "<a>", "<b>" and "<c>"{ about <n>|}.|Use "<c>", "<b>" and "<a>" in one sentence.|Can you put "<a>", "<c>" and "<b>" into a sentence{ about <n>|}?',
            a=a,
            b=b,
            c=adjective,
            n=name,
        )
        who = name if name in prompt else pen.say("{the teacher|my uncle|nobody}")
        pen.cue(voice, a, b, adjective)
        answer = pen.say(
            '{<who> drew a(n) <a> and a(n) <b>, {and|but} everything looked <c>.|"How <c>!" said {<who>|the voice}, and {put|hid} the <a> {behind|under} the <b>.|In a(n) <c> dream, {<who> saw|there were} a(n) <a> {and|next to} a(n) <b>.|The <a> and the <b> {seemed|felt} <c> to {<who>|everyone}.}'.replace(
                "{<who>|the voice}", "<who>"
            )
            .replace("{<who> saw|there were}", "<who> saw")
            .replace("{<who>|everyone}", "<who>"),
            a=a,
            b=b,
            c=adjective,
            who=who,
        )
    return "words", [request(pen, prompt, voice), voiced(pen, voice, answer)]


FAMILIES = [(word, 1)]
