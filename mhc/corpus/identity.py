"""Who the model is: the questions and answers of identity.yaml, with a name and an author."""

from pathlib import Path

import yaml

from mhc.errors import UserError

GROUPS = Path(__file__).with_name("identity.yaml")


def identity(name: str, author: str) -> list[dict]:
    """Conversations {"messages"} with different questions, in which the model is `name`, made by `author`.

    Raises UserError where one of the two is empty.
    """
    for what, value in (("name", name), ("author", author)):
        if not value.strip():
            raise UserError(f"the {what} is empty: say who the model is, and who made it")
    rows = []
    for group in yaml.safe_load(GROUPS.read_text(encoding="utf-8")):
        for number, question in enumerate(group["questions"].splitlines()):
            answer = group["answers"][number % len(group["answers"])]
            answer = answer.replace("<name>", name).replace("<author>", author)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append({"messages": messages})
    return rows
