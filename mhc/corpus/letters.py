"""Letters and messages with given details, in a given tone, and their changes."""

from .dates import DAYS
from .grammar import Pen
from .names import PEOPLE, TOWNS

EVENTS = {"birthday party": "celebrate my birthday", "dinner": "have dinner together", "picnic": "sit in the grass and eat", "concert": "listen to some music", "barbecue": "grill in the garden", "game night": "play cards and board games",
          "house-warming": "see my new flat", "hike": "walk in the hills", "film night": "watch an old film", "bicycle tour": "ride along the river"}  # fmt: skip
PLACES = ["at my place", "in the park", "at the old mill", "in the garden", "at the town hall", "by the lake",
          "in the school hall", "at the station", "in the library", "at the harbour"]  # fmt: skip
BRING = ["a cake", "warm clothes", "a friend", "your guitar", "some fruit", "good shoes", "a torch",
         "something to drink", "an umbrella", "a blanket", "your camera", "a salad"]  # fmt: skip
GIFTS = ["the book", "the teddy bear", "the vase", "the record", "the box of chocolates", "the mug",
         "the photograph", "the plant", "the puzzle", "the teapot"]  # fmt: skip
FAULTS = {
    "lamp": "does not light up",
    "kettle": "leaks",
    "radio": "makes no sound",
    "chair": "wobbles",
    "clock": "runs slow",
    "printer": "prints only blank pages",
    "toaster": "burns the bread",
    "tent": "lets the rain in",
    "camera": "will not open",
    "jacket": "has a broken zip",
}
REASONS = ["I have a cold", "my train was cancelled", "my sister is visiting", "I must work late",
           "my car broke down", "I have an exam", "the babysitter is ill", "I hurt my foot", "the pipes burst",
           "I lost my keys"]  # fmt: skip
FAVOURS = ["water my plants", "feed the cat", "lend me your drill", "help me move", "look through my essay",
           "drive me to the airport", "fix my bicycle", "take in a parcel"]  # fmt: skip
TONES = {"friendly": ("{Dear|Hi|Hello} <to>,", "{Love,|See you soon,|Warmly,|Take care,}"), "formal": ("{Dear|Good day,} <to>,", "{Yours sincerely,|Kind regards,|With best regards,|Respectfully,}"),
         "funny": ("{Hey|Ahoy|Oh mighty} <to>,", "{Your silly friend,|Over and out,|Yours until the cows come home,}"), "short": ("<to>,", "{Best,|Yours,|Thanks,}")}  # fmt: skip

BODY = {
    "invitation": {
        "friendly": "{{I would love to invite you|You are warmly invited} to <a> <event> on <day> at <hour>, <place>. {We will <do>|We want to <do>, and it would be lovely to have you}. {Please|If you can,} bring <bring>{.| and good spirits.} {Let me know {soon|if you can come}.|I hope you can make it!}"
                    "|On <day> at <hour> there {is|will be} <a> <event> <place>. {Will you come?|Do come!} {We are going to <do>|The plan is to <do>}, {and I ask everyone to|so please} bring <bring>. {It will not be the same without you.|I look forward to it.}}",
        "formal": "{It is my pleasure to invite you to <a> <event>, {which takes|taking} place on <day> at <hour> <place>. {Guests are kindly asked to|Please be so kind as to} bring <bring>. {I should be grateful for a reply.|Please confirm your attendance.}"
                  "|May I invite you to <a> <event> on <day>? {It begins at <hour>|The beginning is at <hour>} <place>, {where we will <do>|and we shall <do>}. {Kindly|Please} bring <bring>. {Your reply would be appreciated.|I would be honoured by your presence.}}",
        "funny": "{Stop everything! <day>, <hour>, <place>: <event>! We will <do> until {we drop|somebody calls the police}. {Bring <bring>, or you wash the dishes|No entry without <bring>}.|{Do you like fun? Then|If you miss this, you will cry:} come to the <event> on <day> at <hour>, <place>. {The password is <bring>|Whoever brings <bring> may stay}.}",
        "short": "{<event> on <day>, <hour>, <place>. {Please bring <bring>|Bring <bring>}. {Coming?|Can you come?}|{Would you come|Care to come} to my <event>? It is on <day> at <hour> <place>. <bring> would be {nice|useful}.}"},
    "thanks": {
        "friendly": "{{Thank you so much for|Many thanks for} <gift>! {It was just what I wanted|You could not have found anything better}. {I have put it|It stands} {next to my bed|on the shelf}, and {I think of you|it makes me smile} every <day>.|What a surprise! <gift> {arrived|came} on <day>, and {I was so happy|my heart jumped}. {Thank you!|How kind of you!} {We must|Let us} meet <place> {soon|and catch up}.}",
        "formal": "{I wish to thank you for <gift>, which {reached me|arrived} on <day>. {Your kindness is much appreciated|It was most thoughtful of you}.|Please accept my thanks for <gift>. {I was delighted to receive this on <day>|It gave me great pleasure on <day>}{, and I hope to return the favour|}.}",
        "funny": "{<gift>! For me! {I screamed|The neighbours heard me scream} on <day>. {Thank you, you wonderful person|You win the prize for the best friend}.|Who told you that I needed <gift>? {A spy|My cat}? {Thanks a million|I bow down to you}, and {meet me <place> on <day> for cake|come <place> on <day>, I will bake}.}",
        "short": "{Thanks for <gift>. {It came on <day>|I got this on <day>}, {and I love it|and it is perfect}.|<gift> arrived on <day>. {Thank you!|Perfect. Many thanks.}}"},
    "complaint": {
        "friendly": "{On <day> I bought a(n) <item> in your shop, but {sadly|I am afraid} it <fault>. {Could you|Would you please} {exchange it|send me a new one}? {I am sure it is only a mistake.|I have always been happy with you.}|I am a little sad: the <item> {from <day>|that I bought on <day>} <fault>. {What can we do?|Can you help me?} {A new one|An exchange} would make me {smile again|happy}.}",
        "formal": "{On <day> I purchased a(n) <item> from you. {Unfortunately|I regret to say that} it <fault>. I {therefore|must} ask you to {refund the price|replace it} {within two weeks|without delay}.|I am writing to complain about a(n) <item> {bought|which I bought} on <day>, {as|since} it <fault>. {Please|Kindly} {replace it|return my money} {at once|by <day2>}.}",
        "funny": "{My new <item> <fault>. {I sang to it, in vain|Even prayers did not help}. {Please send one that works|May I have one with less humour}? I bought it on <day>{, full of hope|}.|Since <day> I {own|have} a(n) <item> that <fault>. {As art it is great|My cat laughs at it}, {but I need a real one|yet I would like my money back}.}",
        "short": "{The <item> from <day> <fault>. {Please replace it|I want my money back}.|I bought a(n) <item> on <day>. It <fault>. {A refund, please|Please send a new one}.}"},
    "apology": {
        "friendly": "{I am so sorry, but I cannot come to the <event> on <day>: <reason>. {Can we meet another day?|Shall we try <day2> instead?} {I will make it up to you.|Please do not be cross.}|<day> will not work for me, because <reason>. {I am really sorry|It makes me sad} to miss the <event>. {How about <day2>?|Would <day2> suit you?}}",
        "formal": "{I regret that I am unable to attend the <event> on <day>, as <reason>. {Please accept my apologies|I apologise for any trouble}. {Might <day2> be possible?|I would be free on <day2>.}|Please excuse my absence from the <event> on <day>. {The reason is that <reason>|As it happens, <reason>}. {I could come on <day2>|I propose <day2> instead}.}",
        "funny": "{Bad news: <reason>, so the <event> on <day> must shine without me. {Weep not|Dry your tears}, {I am free on <day2>|we will dance on <day2>}.|Guess who is not coming to the <event> on <day>? Me! <reason>. {Forgive this fool|Punish me gently}, {and let us say <day2>|and take <day2> instead}.}",
        "short": "{I cannot come on <day>: <reason>. {Sorry! <day2> instead?|Is <day2> fine?}|Sorry, no <event> for me on <day>, {as|because} <reason>. {Maybe <day2>?|<day2> would work.}}"},
    "request": {
        "friendly": "{Could you do me a favour {and|on <day>, please, and} <favour>? {I ask because <reason>|You see, <reason>}. {I will thank you with|In return there is} <bring>{!| from me.}|I have a small favour to ask: {would|could} you <favour> on <day>? <reason>, {and I do not know what else to do|so I need help}. {Thank you so much!|You would save me.}}",
        "formal": "{May I ask you to <favour> on <day>? {The reason for my request is that <reason>|I ask because <reason>}. {I would be most grateful|Your help would be highly valued}.|I am writing to ask {if|whether} you could <favour> on <day>, {as|since} <reason>. {Please let me know|Kindly reply} {by <day2>|at your convenience}.}",
        "funny": "{Hero wanted! Task: <favour>. Date: <day>. Pay: {my endless love|a pot of jam}. {Why? Because <reason>|All this because <reason>}.|Are you brave? Then <favour> on <day>. {<reason>, and the world is ending|I would do it myself, but <reason>}. {Songs will be sung about you|I shall name a goldfish after you}.}",
        "short": "{Could you <favour> on <day>? <reason>.|Please <favour> on <day>, {as|because} <reason>. {It would help a lot.|I owe you one.}}"},
}  # fmt: skip
KIND = {
    "invitation": "{an invitation|a letter of invitation}",
    "thanks": "{a thank-you letter|a note of thanks}",
    "complaint": "{a complaint|a letter of complaint}",
    "apology": "{an apology|a letter to cancel}",
    "request": "{a letter asking for a favour|a request}",
}
DETAILS = {
    "invitation": ["the event is a(n) <event>", "it is on <day> at <hour>", "it takes place <place>", "guests bring <bring>"], "thanks": ["it is for <gift>", "it came on <day>"],
    "complaint": ["the <item> <fault>", "it was bought on <day>"], "apology": ["the event is the <event> on <day>", "the reason is that <reason>", "<day2> would be possible"], "request": ["the favour: <favour>", "it is about <day>", "the reason: <reason>"]}  # fmt: skip


def letter(pen: Pen) -> tuple[str, list[str]]:
    """Write a letter of a kind, to someone, from someone, in a tone, with details."""
    kind, tone = pen.pick(list(BODY)), pen.pick(list(TONES))
    sender, to = (name for name, _ in pen.sample(PEOPLE, 2))
    day, day2 = pen.sample(DAYS, 2)
    event, item = pen.pick(list(EVENTS)), pen.pick(list(FAULTS))
    slots = dict(to=to, event=event, do=EVENTS[event], day=day, day2=day2, hour=f"{pen.between(8, 20)}:{pen.pick(['00', '15', '30', '45'])}", place=pen.pick(PLACES), bring=pen.pick(BRING), gift=pen.pick(GIFTS), item=item, fault=FAULTS[item],
                 reason=pen.pick(REASONS), favour=pen.pick(FAVOURS), town=pen.pick(TOWNS), a="a")  # fmt: skip
    details = list(DETAILS[kind])
    pen.rng.shuffle(details)
    given = pen.ask("; ".join(details).replace("|", ""), **slots)
    given = given[0].lower() + given[1:] if not given.startswith(tuple(DAYS)) else given
    prompt = pen.ask("{{Write|Draft|Compose} {a <tone> version of|} <k> from <from> to <to>: <d>.|<from> {wants to|must} write <k> to <to>. {Tone: <tone>.|It should be <tone>.|Make it <tone>.} {Details|Facts}: <d>.|I am <from>. {Help me write|Please write} <k> to <to>, <tone> in tone. {Use this|Details}: <d>.}",
                     **{**slots, "from": sender}, tone=tone, k=pen.ask(KIND[kind]).replace("A", "a", 1), d=given)  # fmt: skip
    prompt = prompt.replace("a friendly version of ", "a friendly version of ").replace(
        "a short version of", "a short version of"
    )
    if tone not in prompt:
        prompt += pen.ask(" {Make it <t>.|The tone is <t>.|In a <t> tone.}", t=tone)
    turns = [prompt, _write(pen, kind, tone, sender, slots)]
    if pen.chance(0.45):
        way = pen.between(0, 2)
        if way == 0:
            new = pen.pick([t for t in TONES if t != tone])
            turns += [
                pen.ask("{Make it <t>.|Now a <t> version.|The same, but <t>.|Can you make that <t>?}", t=new),
                _write(pen, kind, new, sender, slots),
            ]
        elif way == 1:
            new = pen.pick([n for n, _ in PEOPLE if n not in (to, sender)])
            turns += [
                pen.ask("{And for <n>?|The same to <n>, please.|Now write it to <n>.}", n=new),
                _write(pen, kind, tone, sender, {**slots, "to": new}),
            ]
        else:
            new = pen.pick([d for d in DAYS if d not in (day, day2)])
            turns += [
                pen.ask("{Change the day to <d>.|Not <o>: it is <d>.|Make it <d>.}", d=new, o=day),
                _write(pen, kind, tone, sender, {**slots, "day": new}),
            ]
    return "letters", turns


def _write(pen: Pen, kind: str, tone: str, sender: str, slots: dict) -> str:
    pen.cue(kind + tone, slots["day"], slots["to"], slots["event"] + slots["gift"])
    hello, goodbye = TONES[tone]
    body = pen.say(BODY[kind][tone], **slots).replace("..", ".")
    return f"{pen.raw(hello, **slots)}\n\n{body}\n\n{pen.raw(goodbye)}\n{sender}".replace(
        "Good day, " + slots["to"], "Good day, " + slots["to"]
    )


FAMILIES = [(letter, 1)]
