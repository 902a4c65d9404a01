"""Files with faults, and what is said of them."""

import json
import re

from lorakit.cli import main


def said(capsys, *arguments):
    """(exit code, stdout, stderr) of the command."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    return code, out.out, out.err


def refused(capsys, words, *arguments):
    """The one message of a command that is refused, behind the progress bars: these words, where … stands for any."""
    code, _, err = said(capsys, *arguments)
    _, *messages = ("\n" + err).split("\nlorakit: ")
    assert code == 1 and len(messages) == 1, err
    message = messages[0].removesuffix("\n")
    assert re.fullmatch(re.escape(words).replace("…", ".*"), message, re.DOTALL), message
    return message


def lines(*rows):
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
        for row in rows
    )


def qa(number=3):
    return [
        {"prompt": f"question {i}: {i * i}?", "completion": f"answer {i}"} for i in range(number)
    ]


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
