"""Small Python functions composed from steps, with an explanation; every one is correct Python."""

from .grammar import Pen

FILTERS = {"even": ("{n} % 2 == 0", "even numbers"), "odd": ("{n} % 2 == 1", "odd numbers"), "positive": ("{n} > 0", "positive numbers"), "negative": ("{n} < 0", "negative numbers"),
           "above": ("{n} > {k}", "numbers above {k}"), "below": ("{n} < {k}", "numbers below {k}"), "multiple": ("{n} % {k} == 0", "multiples of {k}")}  # fmt: skip
MAPS = {
    "square": ("{n} * {n}", "squares"),
    "double": ("2 * {n}", "doubles"),
    "add": ("{n} + {j}", "values plus {j}"),
    "times": ("{n} * {j}", "products with {j}"),
    "half": ("{n} / 2", "halves"),
    "cube": ("{n} ** 3", "cubes"),
    "none": ("{n}", ""),
}
ENDS = {
    "sum": ("sum", "sum"),
    "largest": ("max", "largest"),
    "smallest": ("min", "smallest"),
    "list": ("list", "list"),
    "sorted": ("sorted", "sorted list"),
    "number": ("len", "number"),
}
STRING_FILTERS = {"long": ("len({w}) > {k}", "words longer than {k} letters"), "short": ("len({w}) < {k}", "words shorter than {k} letters"), "starts": ("{w}.startswith(\"{c}\")", "words that start with {c}"),
                  "ends": ("{w}.endswith(\"{c}\")", "words that end with {c}"), "contains": ("\"{c}\" in {w}", "words that contain {c}")}  # fmt: skip
STRING_MAPS = {
    "upper": ("{w}.upper()", "upper case"),
    "reverse": ("{w}[::-1]", "reversed"),
    "first": ("{w}[0]", "only the first letter"),
    "capital": ("{w}.capitalize()", "capitalised"),
    "none": ("{w}", ""),
}
STRING_ENDS = {
    "list": ("[{x}]", "a list"),
    "joined": ('", ".join({x})', "one string, joined by commas"),
    "number": ("len([{x}])", "their number"),
    "sorted": ("sorted({x})", "a sorted list"),
    "set": ("set({x})", "a set"),
}
VARIABLES = ["numbers", "values", "data", "items"]


def function(pen: Pen) -> tuple[str, list[str]]:
    """A function that filters, maps and gathers; as a comprehension or a loop."""
    strings = pen.chance(0.45)
    k, j, c = pen.between(2, 9), pen.between(2, 9), pen.pick("abcdeghilmnoprst")
    name = pen.pick(["select", "collect", "gather", "process", "solve", "compute", "pick", "scan"]) + pen.pick(
        ["", "_it", "_all", "_" + ("words" if strings else "values")]
    )
    variable = pen.pick(["words", "names", "tokens"] if strings else VARIABLES)
    item = variable[:-1] if variable != "data" else "value"
    loop = pen.chance(0.35)
    filters, maps, ends = (STRING_FILTERS, STRING_MAPS, STRING_ENDS) if strings else (FILTERS, MAPS, ENDS)
    f, m, e = pen.pick(list(filters)), pen.pick(list(maps)), pen.pick(list(ends))
    fill = dict(n=item, w=item, k=k, j=j, c=c)
    test, what = (text.format(**fill) for text in filters[f])
    value, how = (text.format(**fill) for text in maps[m])
    if strings:
        wish = {
            "list": "{a list of|the list of}",
            "joined": "{one string with|a string of} {all |}",
            "number": "{the number of|how many there are of}",
            "sorted": "{a sorted list of|the sorted}",
            "set": "{a set of|the set of}",
        }[e]
        goal = pen.ask(wish).strip() + " the " + what + (f", {how}" if how else "")
        goal = (
            goal.replace("the sorted the", "the sorted")
            .replace("A ", "a ")
            .replace("The ", "the ")
            .replace("One ", "one ")
            .replace("How ", "how ")
        )
        inner = f"{value} for {item} in {variable} if {test}"
        result = STRING_ENDS[e][0].format(x=inner)
        kind = "list[str]"
        returned = {"list": "list[str]", "joined": "str", "number": "int", "sorted": "list[str]", "set": "set[str]"}[e]
    else:
        part = (
            f"{how} of the {what}"
            if how and m not in ("add", "times")
            else (f"{what}, {'each plus' if m == 'add' else 'each times'} {j}" if how else what)
        )
        goal = {
            "sum": "the sum of the ",
            "largest": "the largest of the ",
            "smallest": "the smallest of the ",
            "list": "a list of the ",
            "sorted": "a sorted list of the ",
            "number": "the number of the ",
        }[e] + part
        inner = f"{value} for {item} in {variable} if {test}"
        result = {"list": f"[{inner}]", "sorted": f"sorted({inner})", "number": f"len([{inner}])"}.get(
            e, f"{ENDS[e][0]}({inner})"
        )
        kind, returned = (
            "list[float]",
            {"list": "list[float]", "sorted": "list[float]", "number": "int"}.get(e, "float"),
        )
    loop = loop and e in ("list", "sum", "number", "set")
    prompt = pen.ask("{Write|Give me|I need|Show me} {a Python function|a function} `<name>` {that returns|which returns|returning} <goal>{| in a list `<v>`| of a list called `<v>`}.|Python: `<name>(<v>)` should return <goal>.|In Python, "
                     "how do I get <goal>{ from `<v>`|}? Call the function `<name>`.", name=name, goal=goal, v=variable)  # fmt: skip
    if variable not in prompt:
        prompt += pen.ask(" {The argument is `<v>`.|Call the argument `<v>`.}", v=variable)
    if loop:
        prompt += pen.ask(" {Use a loop.|With a for loop, please.|No comprehension.}")
    types = pen.chance(0.35)
    if types:
        prompt += pen.ask(" {Add type hints.|Use type annotations.|Type hints, please.}")
    head = f"def {name}({variable}: {kind}) -> {returned}:" if types else f"def {name}({variable}):"
    if loop:
        start = {"list": "[]", "sum": "0", "number": "0", "set": "set()"}[e]
        keep = {
            "list": f"result.append({value})",
            "sum": f"result += {value}",
            "number": "result += 1",
            "set": f"result.add({value})",
        }[e]
        body = f"    result = {start}\n    for {item} in {variable}:\n        if {test}:\n            {keep}\n    return result"
    else:
        body = f"    return {result}"
    code = f"```python\n{head}\n{body}\n```"
    pen.cue(f, m, e, variable)
    explain = pen.say(
        ("{The loop|It|The function} {goes through|walks over|looks at} `<v>`{ one by one|}, {keeps only the <what>|skips everything but the <what>}<mapped> and {returns|gives back|hands back} <end>."
         "|{For each|With each} `<i>`, {we test|the code checks} `<test>`{;|, and} only the <what> {are used|count}<mapped>. {The result is|You get|It returns} <end>.") if loop else
        ("{The comprehension|The expression} {keeps|takes} {only |}the <what>{ of `<v>`|}<mapped>, and {the function|it} returns <end>."
         "|{The test|The condition} `<test>` {keeps|selects|lets through} the <what><mapped>{; the result is|. The result is|, which gives} <end>."
         "|{Only|Just} the <what> {pass|remain|are kept}<mapped>. {You get|This yields|The caller gets} <end>."),
        v=variable, i=item, what=what, test=test, mapped="" if not how else f" ({how})",
        end={"sum": "their sum", "largest": "the largest", "smallest": "the smallest", "list": "a list", "sorted": "a sorted list", "number": "their number", "joined": "one string", "set": "a set"}[e])  # fmt: skip
    short = pen.chance(0.25)
    if short:
        prompt += pen.ask(" {Code only.|Only the code, please.|No explanation.}")
    turns = [prompt, code if short else f"{code}\n\n{explain}" if len(name) % 2 else f"{explain}\n\n{code}"]
    if pen.chance(0.4):
        sample = (
            pen.sample(["apple", "tree", "sun", "garden", "note", "cat", "bread", "moon", "stone", "lamp"], 4)
            if strings
            else [pen.between(-9, 20) for _ in range(5)]
        )
        scope: dict = {}
        exec(
            head.replace(": list[float]", "").replace(": list[str]", "").split(" ->")[0].rstrip(":") + ":\n" + body,
            scope,
        )
        try:
            outcome = scope[name](sample)
        except ValueError:
            outcome = None
        if isinstance(outcome, set) and len(outcome) > 1:  # its order is not always the same
            outcome = None
        pen.cue(f, m, e)
        if outcome is None and strings:
            return "functions", turns
        answer = f"`{outcome!r}`" if outcome is not None else "an error"
        turns += [pen.ask("{What does it return for|And the result for|Try it on|What do I get for} `<s>`?", s=repr(sample)),
                  pen.say("{It returns|You get|The result is|That gives} <a>.", a=answer) if outcome is not None else
                  pen.say("{None of the numbers passes the test|No number fits}, so `<f>` raises a ValueError.", f=ENDS[e][0])]  # fmt: skip
    return "functions", turns


def evaluate(pen: Pen) -> tuple[str, list[str]]:
    """What does this short expression give?"""
    word = pen.pick(
        ["python", "garden", "winter", "silver", "dragon", "orange", "camera", "pocket", "planet", "letter"]
    )
    numbers = [pen.between(1, 30) for _ in range(pen.between(3, 5))]
    i, j = pen.between(0, 2), pen.between(3, 5)
    source, reason = pen.pick([
        (f'"{word}"[{i}:{j}]', f"{{the slice takes|it takes}} the characters from index {i} up to, but {{not including|without}} index {j}"),
        (f'"{word}"[::-1]', "a step of -1 {walks backwards|reverses the string}"), (f'"{word}".upper()', "`upper` {makes every letter large|turns all letters into capitals}"),
        (f'len("{word}")', "{`len` counts the characters|there are that many letters}"), (f"sorted({numbers})", "`sorted` {returns a new list in rising order|puts the numbers in order}"),
        (f"sum({numbers})", "{" + " + ".join(map(str, numbers)) + " is just that|`sum` adds them up}"), (f"max({numbers}) - min({numbers})", f"the largest is {max(numbers)} and the smallest {min(numbers)}"),
        (f"{numbers}[{i}]", "{counting starts at 0|indices begin with zero}"), (f"{numbers}[-1]", "{-1 means the last one|negative indices count from the end}"),
        (f"[n * {j} for n in {numbers}]", f"{{each number is multiplied by {j}|every n becomes n * {j}}}"), (f"[n for n in {numbers} if n > {j * 3}]", f"{{only numbers above {j * 3} stay|the condition drops the rest}}"),
        (f'"-".join("{word}")', "`join` {puts a dash between the letters|glues the letters with dashes}"), (f"{numbers[0] * 3 + 1} // {j}", "{`//` cuts off the fraction|this is whole-number division}"),
        (f"{numbers[0] * 3 + 1} % {j}", "{`%` gives the remainder|the remainder is what stays}"), (f'"{word}".find("{word[i]}")', "{`find` returns the first index|it gives the first place of the letter}"),
        (f'"{word}" * {i + 1}', "{the string is repeated|multiplying repeats a string}")])  # fmt: skip
    value = eval(source)
    pen.cue(source.split("(")[0][-6:], word, len(numbers))
    prompt = pen.ask(
        "{What is|What does Python print for|Evaluate|What is the value of|Result of} `<s>`{?| in Python?}", s=source
    ).replace("Evaluate `" + source + "`?", "Evaluate `" + source + "`.")
    if pen.chance(0.7):
        prompt += pen.ask(" {Why?|Explain.|And why?|Give a reason.}")
        answer = pen.say(
            "{It {is|gives}|The {result|value} is|You get|Python {shows|returns}} `<v>`{, because|: |, since|, as} <r>.|`<v>`. {The reason: |Here |}<r>.|<r>, so {it gives|the result is|you get} `<v>`.",
            v=repr(value),
            r=pen.raw(reason),
        )
    else:
        answer = pen.say("{It is|The result is|You get|} `<v>`.", v=repr(value))
    return "expressions", [prompt, answer]


FAMILIES = [(function, 4), (evaluate, 2)]
