"""Voices: how a prompt asks for a tone, and how answers in that tone begin and end."""

from .grammar import Pen

TONES = {
    "plain": "",
    "formal": "{formally|in a formal tone|in polite, formal English}",
    "child": "{for a small child|so that a six-year-old understands|in words for young children}",
    "pirate": "{as a pirate|like a pirate captain|in the voice of a pirate}",
    "cheerful": "{cheerfully|in a cheerful tone|with plenty of enthusiasm}",
    "grumpy": "{grumpily|like a grumpy old man|in a bad mood}",
    "poet": "{poetically|like a poet|in the voice of a dreamy poet}",
    "news": "{like a newsreader|as a news report|in the style of the evening news}",
    "coach": "{like a sports coach|as a football trainer would|in the voice of a coach}",
    "robot": "{like a robot|as a robot|in the voice of a machine}",
    "detective": "{like a detective|as a private detective would|in the voice of a detective}",
}
NAMES = list(TONES)

OPENINGS = {
    "plain": "{||||}",
    "formal": "{Certainly. |It is a pleasure to answer. |Allow me to explain. |With pleasure. }",
    "child": "{Listen, little one! |Imagine this! |That is a lovely question! |Come and sit down. }",
    "pirate": "{Arr! |Ahoy, matey! |Shiver me timbers! |Avast, ye landlubber! }",
    "cheerful": "{Oh, what fun! |Great question! |Hooray! |I love this one! }",
    "grumpy": "{If you must know. |Not again. |Fine. |Can nobody look anything up these days? }",
    "poet": "{O gentle reader. |Hush and hear. |As the evening falls, I tell you this. |Softly now. }",
    "news": "{Good evening. |Breaking news tonight. |Here is the latest. |This just in. }",
    "coach": "{Listen up, team! |All right, eyes on me! |Let's go! |Heads up, everyone! }",
    "robot": "{Query received. |Beep. |Processing complete. |Input accepted. }",
    "detective": "{The clues are clear. |I have studied the case. |Elementary. |Let us look at the evidence. }",
}

CLOSINGS = {
    "plain": "{||||}",
    "formal": "{ I hope this is of use.| Please let me know if you need more.|| I trust this answers your question.}",
    "child": "{ Isn't that nice?| Now you know!|| Clever, isn't it?}",
    "pirate": "{ Now fetch me a barrel of rum!| By the seven seas, that be the truth.|| So says your captain.}",
    "cheerful": "{ Isn't that wonderful?| Have a lovely day!|| How marvellous!}",
    "grumpy": "{ Now leave me alone.| Was that so hard?|| There, are you happy?}",
    "poet": "{ So sings the wind.| And the stars listen.|| Thus ends my little song.}",
    "news": "{ Back to the studio.| More at ten o'clock.|| We will keep you informed.}",
    "coach": "{ Now get out there!| Give it everything you have!|| No excuses!}",
    "robot": "{ End of message.| Beep.|| Awaiting next input.}",
    "detective": "{ Case closed.| No doubt remains.|| The rest is paperwork.}",
}


def choose(pen: Pen, plain: float = 0.5) -> str:
    """Pick a voice; the plain one with probability `plain`."""
    return "plain" if pen.chance(plain) else pen.pick(NAMES[1:])


def in_tone(pen: Pen, voice: str) -> str:
    """Return the words by which a prompt asks for this voice ("" for the plain one)."""
    words = pen.ask(TONES[voice])
    return words[:1].lower() + words[1:]


def request(pen: Pen, prompt: str, voice: str) -> str:
    """Add the wish for a voice to a prompt, before or after it."""
    if voice == "plain":
        return prompt
    how = in_tone(pen, voice)
    if pen.chance(0.3):
        return f"{how[0].upper()}{how[1:]}, please: {prompt}"
    return prompt + " " + pen.ask("{Answer <how>.|Please reply <how>.|Say it <how>.|Tell me <how>.}", how=how)


def voiced(pen: Pen, voice: str, text: str) -> str:
    """Dress an answer with the opening and closing words of the voice."""
    return pen.raw(OPENINGS[voice]) + text + pen.raw(CLOSINGS[voice])
