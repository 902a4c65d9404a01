"""A row's columns become what a task asks for, or a reason that says what is wrong with the row."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example
from lorakit.data.matching import find_schema
from lorakit.data.schemas import (
    alpaca,
    fill,
    holes,
    messages,
    prompt_completion,
    sharegpt,
    text,
    text_label,
    translation,
)

SCHEMAS = registry.modules("schemas")
each_schema = pytest.mark.parametrize("name", SCHEMAS)


def said(converted):
    return [(turn["role"], turn["content"]) for turn in converted["messages"]]


def turns(*pairs):
    return [{"role": r, "content": c} for r, c in pairs]


# A prompt and an answer


@pytest.mark.parametrize(
    ("schema", "fields", "expected"),
    [
        (
            prompt_completion,
            {"prompt": " p ", "completion": " c "},
            [("user", " p "), ("assistant", " c ")],
        ),
        (prompt_completion, {"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
        (prompt_completion, {"query": "q", "response": "r"}, [("user", "q"), ("assistant", "r")]),
        (prompt_completion, {"problem": "p", "solution": "s"}, [("user", "p"), ("assistant", "s")]),
        (prompt_completion, {"input": "i", "output": "o"}, [("user", "i"), ("assistant", "o")]),
        (
            prompt_completion,
            {"question": "6 · 7?", "answer": 42},
            [("user", "6 · 7?"), ("assistant", "42")],
        ),
        (
            prompt_completion,
            {"question": "½?", "answer": 0.5},
            [("user", "½?"), ("assistant", "0.5")],
        ),
        (
            prompt_completion,
            {"system_prompt": "Be brief.", "question": "q", "response": "r"},
            [("system", "Be brief."), ("user", "q"), ("assistant", "r")],
        ),
        (
            prompt_completion,
            {
                "prompt": turns(("system", "s"), ("user", "u")),
                "completion": turns(("assistant", "a")),
            },
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        (
            prompt_completion,
            {
                "prompt": turns(("user", "u")),
                "completion": turns(("assistant", "a"), ("user", "v"), ("assistant", "b")),
            },
            [("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")],
        ),
        (
            alpaca,
            {"instruction": "Name it.", "input": "A tap.", "output": "tap"},
            [("user", "Name it.\n\nA tap."), ("assistant", "tap")],
        ),
        (
            alpaca,
            {"instruction": "Name it.", "context": "A tap.", "response": "tap", "category": "qa"},
            [("user", "Name it.\n\nA tap."), ("assistant", "tap")],
        ),
        (
            alpaca,
            {"instruction": "Add.", "input": "1 + 1", "output": 2},
            [("user", "Add.\n\n1 + 1"), ("assistant", "2")],
        ),
        (
            alpaca,
            {"system": "Be brief.", "instruction": "Name it.", "output": "tap"},
            [("system", "Be brief."), ("user", "Name it."), ("assistant", "tap")],
        ),
        (
            translation,
            {"source": "Wasser", "target": "water"},
            [("user", "Wasser"), ("assistant", "water")],
        ),
        (
            translation,
            {"translation": {"de": "Wasser", "en": "water"}},
            [("user", "Wasser"), ("assistant", "water")],
        ),
        (
            translation,
            {"translation": {"en": "water", "de": "Wasser"}},
            [("user", "water"), ("assistant", "Wasser")],
        ),
        (
            translation,
            {"source": "Wasser", "translation": "water"},
            [("user", "Wasser"), ("assistant", "water")],
        ),
    ],
)
def test_prompts_and_answers(schema, fields, expected):
    assert said(schema.convert(fields)) == expected


@pytest.mark.parametrize("nothing", [None, "", " \n", float("nan")])
def test_what_may_be_empty_is_left_out(nothing):
    expected = [("user", "Name it."), ("assistant", "tap")]
    optional = {"input": nothing, "context": nothing, "system": nothing}
    assert (
        said(alpaca.convert({"instruction": "Name it.", "output": "tap", **optional})) == expected
    )
    assert (
        said(
            prompt_completion.convert(
                {"prompt": "Name it.", "completion": "tap", "system": nothing}
            )
        )
        == expected
    )
    spoken = [
        {"from": "system", "value": None if nothing != nothing else nothing},
        {"from": "human", "value": "Name it."},
        {"from": "gpt", "value": "tap"},
    ]
    assert said(sharegpt.convert({"conversations": spoken, "system_prompt": nothing})) == expected


def test_text_is_kept_to_the_character():
    assert text.convert({"text": " The river\x00rose.\r\n", "id": 7}) == {
        "text": " The river\x00rose.\r\n"
    }


# A class


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"text": "t", "label": "need"}, "need"),
        ({"text": "t", "label": " need\n"}, "need"),
        ({"sentence": "t", "label": 0}, "0"),
        ({"sentence": "t", "class": 1.0}, "1"),
        ({"message": "t", "category": -3.0}, "-3"),
        ({"review": "t", "sentiment": True}, "True"),
        ({"content": "t", "intent": False}, "False"),
        ({"text": "t", "label": 0, "label_text": "negative"}, "negative"),
        ({"text": "t", "label": "NaN"}, "NaN"),
    ],
)
def test_a_text_and_its_class(fields, label):
    assert text_label.convert(fields) == {
        "messages": [{"role": "user", "content": "t"}, {"role": "assistant", "content": label}],
        "label": label,
    }


# Turns


def test_turns_in_both_forms_and_all_names():
    expected = [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a"),
        ("user", "v"),
        ("assistant", "b"),
    ]
    assert said(messages.convert({"messages": turns(*expected)})) == expected
    assert said(sharegpt.convert({"conversation": turns(*expected)})) == expected
    for first, second, third in (
        ("system", "human", "gpt"),
        ("developer", "user", "assistant"),
        ("system", "human", "chatgpt"),
        ("system", "human", "bing"),
        ("system", "human", "bard"),
        ("system", "user", "model"),
    ):
        names = {"system": first, "user": second, "assistant": third}
        given = [{"from": names[role], "value": words} for role, words in expected]
        assert said(sharegpt.convert({"conversations": given})) == expected
        given = [{"role": names[role], "content": words} for role, words in expected]
        assert said(messages.convert({"messages": given})) == expected


def test_thoughts_are_kept_and_nothing_else():
    given = turns(("system", "s"), ("user", "u"), ("assistant", "a"))
    given[1] |= {"thinking": None, "name": "Ada"}
    given[2] |= {
        "reasoning_content": "r",
        "thinking": "t",
        "name": "n",
        "weight": 1,
        "tool_calls": [],
        "function_call": None,
    }
    assert messages.convert({"messages": given, "tools": None, "functions": []})["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "reasoning_content": "r", "thinking": "t"},
    ]


def test_parts_of_text_stand_on_lines_of_their_own():
    parts = [
        {"type": "text", "text": "Is it"},
        {"type": "input_text", "text": "safe?", "index": None},
    ]
    given = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    assert said(messages.convert({"messages": given})) == [
        ("user", "Is it\nsafe?"),
        ("assistant", "No."),
    ]


def test_a_system_column_stands_first_unless_a_turn_does():
    asked = turns(("user", "u"), ("assistant", "a"))
    assert said(messages.convert({"system": "c", "messages": asked}))[0] == ("system", "c")
    assert said(messages.convert({"system": "c", "messages": turns(("system", "t")) + asked}))[
        0
    ] == ("system", "t")


# What does not fit says why


@pytest.mark.parametrize(
    ("schema", "fields", "words"),
    [
        (alpaca, {"output": "x"}, "column 'instruction'.* is missing"),
        (alpaca, {"instruction": "x"}, "column 'output'.* is missing"),
        (alpaca, {"instruction": " ", "output": "x"}, "'instruction' is empty"),
        (alpaca, {"instruction": "x", "output": None}, "'output' is null"),
        (alpaca, {"instruction": "x", "output": float("nan")}, "'output' is NaN"),
        (alpaca, {"instruction": "x", "input": 3, "output": "x"}, "'input' is int, expected text"),
        (
            alpaca,
            {"instruction": "x", "system": ["s"], "output": "x"},
            "'system' is list, expected text",
        ),
        (
            prompt_completion,
            {"prompt": ["x"], "completion": "x"},
            "'prompt' is list, expected text",
        ),
        (
            prompt_completion,
            {"prompt": "x", "completion": turns(("assistant", "a"))},
            "'completion' is list, expected",
        ),
        (prompt_completion, {"prompt": 3, "completion": "x"}, "'prompt' is int, expected text"),
        (
            prompt_completion,
            {"prompt": "x", "completion": True},
            "'completion' is true, expected text",
        ),
        (
            prompt_completion,
            {"question": "x", "answer": "\ud83d"},
            "'answer' holds half a character",
        ),
        (
            prompt_completion,
            {"prompt": [], "completion": []},
            r"'prompt \+ completion' is empty, expected a list of turns",
        ),
        (
            prompt_completion,
            {
                "prompt": turns(("user", "u"), ("assistant", "a"), ("user", "v")),
                "completion": turns(("assistant", "b")),
            },
            "'prompt' holds an answer, and every answer is trained: .* give all its turns as 'messages'",
        ),
        (
            prompt_completion,
            {
                "prompt": turns(("user", "u"), ("assistant", "a")),
                "completion": turns(("user", "v"), ("assistant", "b")),
            },
            "'prompt' holds an answer",
        ),
        (
            prompt_completion,
            {"prompt": turns(("user", "u")), "completion": turns(("user", "a"))},
            "no assistant turn",
        ),
        (text, {"text": ""}, "'text' is empty"),
        (text, {"text": 3.5}, "'text' is float, expected text"),
        (text_label, {"text": "t", "label": float("nan")}, "'label' is NaN"),
        (text_label, {"text": "t", "label": None}, "'label' is null"),
        (text_label, {"text": "t", "label": " "}, "'label' is empty"),
        (text_label, {"text": "t", "label": ["a", "b"]}, "'label' is list, expected text"),
        (
            text_label,
            {"text": "t", "label": 0.5},
            "'label' is 0.5, expected a class: text or a whole number",
        ),
        (text_label, {"text": "t", "label": float("inf")}, "'label' is inf, expected a class"),
        (text_label, {"text": None, "label": "a"}, "'text' is null"),
        (translation, {"source": "a"}, "column 'target'.* is missing"),
        (translation, {"translation": "a"}, "column 'source'.* is missing"),
        (
            translation,
            {"translation": {}},
            r"'translation' has the languages \[\], expected two; name two columns",
        ),
        (
            translation,
            {"translation": {"de": "a", "en": "b", "fr": "c"}},
            r"languages \['de', 'en', 'fr'\], expected two",
        ),
        (translation, {"translation": {"de": "a", "en": None}}, "'en' is null"),
        (
            translation,
            {"translation": {"\ud83d": 1, "en": "b"}},
            r"'\\ud83d' is int, expected text",
        ),
    ],
)
def test_a_row_that_does_not_fit_says_why(schema, fields, words):
    with pytest.raises(BadRow, match=words):
        schema.convert(fields)


def answered(**turn):
    return [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", **turn}]


def asked(*parts):
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "is empty, expected a list of turns"),
        ("hi", "is str, expected a list of turns"),
        (["hi"], "turn 1 is str, expected an object with role and content"),
        (
            turns(("narrator", "x")),
            "turn 1 has the role 'narrator'; known: system, developer, user, human, assistant, gpt",
        ),
        ([{"content": "x"}], "turn 1 has no role; known: system"),
        ([{"role": ["user"], "content": "x"}], "turn 1 has no role"),
        (
            [{"role": "user"}, {"role": "assistant", "content": "a"}],
            r"turn 1 \(user\): column 'content'.* is missing",
        ),
        (turns(("user", "u"), ("assistant", "")), r"turn 2 \(assistant\): 'content' is empty"),
        (turns(("user", None), ("assistant", "a")), r"turn 1 \(user\): 'content' is null"),
        (
            turns(("user", "u"), ("assistant", 7)),
            r"turn 2 \(assistant\): 'content' is int, expected text",
        ),
        (
            turns(("user", []), ("assistant", "a")),
            r"turn 1 \(user\): 'content' is list, expected text",
        ),
        (
            [{"from": "human", "value": "\ud83d"}],
            r"turn 1 \(user\): 'value' holds half a character",
        ),
        (answered(thinking="\ud83d"), r"turn 2 \(assistant\): 'thinking' holds half a character"),
        (
            answered(reasoning_content=["r"]),
            r"turn 2 \(assistant\): 'reasoning_content' is list, expected text",
        ),
        (turns(("user", "u")), "no assistant turn: there is nothing to train"),
        (turns(("system", "s")), "no assistant turn"),
        (
            turns(("user", "u"), ("assistant", "a"), ("user", "u")),
            "the last turn is the user's: there is no answer to it",
        ),
        (
            turns(("user", "u"), ("user", "v"), ("assistant", "a")),
            "order: turn 2 is user, expected assistant",
        ),
        (turns(("system", "s"), ("assistant", "a")), "order: turn 2 is assistant, expected user"),
        (turns(("system", ""), ("assistant", "a")), "order: turn 2 is assistant, expected user"),
        (
            turns(("user", "u"), ("system", "s"), ("assistant", "a")),
            "a system turn stands first, and once",
        ),
        (
            turns(("system", "s"), ("developer", "s"), ("user", "u"), ("assistant", "a")),
            "a system turn stands first",
        ),
        (
            asked({"type": "image_url", "image_url": {"url": "x"}}),
            "turn 1 has an image part; only text can be trained: leave the row out or put it in words",
        ),
        (asked({"type": "text", "text": "u"}, {"type": "image"}), "turn 1 has an image part"),
        (asked({"type": "input_audio"}), "turn 1 has an audio part"),
        (asked({"type": "video"}), "turn 1 has a video part"),
        (asked({"type": "input_file"}), "turn 1 has a file part"),
        (asked({"type": "tool_use"}), "turn 1 has a part of type 'tool_use'"),
        (asked("words"), "turn 1 has a part without a type"),
        (asked({"type": {}}), "turn 1 has a part without a type"),
        (asked({"type": "text", "text": None}), r"turn 1 \(user\): 'text' is null"),
        (
            answered(weight=0),
            "every answer is marked not to be trained",
        ),
        (
            answered(tool_calls=[{}], content=None),
            "turn 2 calls a tool or is a tool's, which rows of this form cannot train: leave",
        ),
        (answered(function_call={"name": "f"}), "turn 2 calls a tool"),
        (turns(("user", "u"), ("tool", "x")), "turn 2 calls a tool or is a tool's"),
        ([{"from": "function_call", "value": "x"}], "turn 1 calls a tool or is a tool's"),
        ([{"from": "observation", "value": "x"}], "turn 1 calls a tool or is a tool's"),
    ],
)
def test_turns_that_cannot_be_trained_are_named(given, words):
    for convert, name in ((messages.convert, "messages"), (sharegpt.convert, "conversations")):
        with pytest.raises(BadRow, match=words):
            convert({name: given})


@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_on_offer_are_refused_with_the_cure(column):
    with pytest.raises(
        BadRow, match=f"'{column}' offers tools to the model, which cannot be trained; remove the"
    ):
        messages.convert(
            {"messages": answered(), column: [{"type": "function", "function": {"name": "f"}}]}
        )
    assert messages.convert({"messages": answered(), column: "[]"}) == {"messages": answered()}


# Whatever a row holds

everything = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud83d", "user", "assistant", "text", "image", "nan", 10**400, -0.0, float("inf"), 2.0**80]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | everything,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(everything.filter(lambda k: isinstance(k, str)), inner, max_size=3)
    ),
    max_leaves=6,
)
roles = st.sampled_from([*messages.ROLES, *messages.TOOLS]) | values
parts = st.fixed_dictionaries(
    {"type": st.sampled_from([*messages.TEXT, "image_url"]) | values, "text": values}
)
odd_turn = st.fixed_dictionaries(
    {},
    optional={
        "role": roles,
        "from": roles,
        "content": values | st.lists(parts | values, max_size=3),
        "value": values,
        "weight": values,
        "thinking": values,
        "tool_calls": values,
    },
)
odd_turns = st.lists(odd_turn | values, max_size=4)


@pytest.mark.slow
@each_schema
@settings(max_examples=120, deadline=None)
@given(drawn=st.data())
def test_any_value_is_used_or_named(name, drawn):
    schema = SCHEMAS[name]
    columns = {n for names in (*schema.REQUIRED, schema.OPTIONAL) for n in names} | {
        "tools",
        "functions",
    }
    row = drawn.draw(
        st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(columns), values | odd_turns))
    )
    try:
        converted = schema.convert(row)
    except BadRow as error:
        str(error).encode()
    else:
        assert set(converted) & {schema.GIVES, "media"}
        json.dumps(converted, allow_nan=False, ensure_ascii=False).encode()


# Rows written in each form come back as the turns they were

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda w: w.strip() and "<" not in w  # no place for a picture
)
talks = st.builds(
    lambda system, pairs: [("system", s) for s in system] + [t for pair in pairs for t in pair],
    st.lists(words, max_size=1),
    st.lists(
        st.tuples(st.tuples(st.just("user"), words), st.tuples(st.just("assistant"), words)),
        min_size=1,
        max_size=3,
    ),
)


@settings(max_examples=100, deadline=None)
@given(talks)
def test_conversations_come_back(talk):
    other = {"system": "system", "user": "human", "assistant": "gpt"}
    in_parts = [{"role": role, "content": [{"type": "text", "text": c}]} for role, c in talk]
    for schema, row in (
        (messages, {"messages": turns(*talk)}),
        (messages, {"messages": in_parts}),
        (sharegpt, {"conversations": [{"from": other[r], "value": c} for r, c in talk]}),
        (sharegpt, {"conversations": turns(*talk)}),
    ):
        assert said(schema.convert(json.loads(json.dumps(row)))) == talk
    start = next(i for i, (role, _) in enumerate(talk) if role == "assistant")
    row = {"prompt": turns(*talk[:start]), "completion": turns(*talk[start:])}
    assert said(prompt_completion.convert(row)) == talk


@settings(max_examples=100, deadline=None)
@given(prompt=words, extra=words, answer=words, system=words)
def test_pairs_come_back(prompt, extra, answer, system):
    pair, told = [("user", prompt), ("assistant", answer)], [("system", system)]
    for asks in prompt_completion.REQUIRED[0]:
        for answers in prompt_completion.REQUIRED[1]:
            assert said(prompt_completion.convert({asks: prompt, answers: answer})) == pair
    assert said(translation.convert({"source": prompt, "target": answer})) == pair
    assert said(translation.convert({"translation": {"xx": prompt, "yy": answer}})) == pair
    assert said(
        alpaca.convert({"instruction": prompt, "input": extra, "output": answer, "system": system})
    ) == [*told, ("user", prompt + "\n\n" + extra), ("assistant", answer)]
    assert text.convert({"text": prompt}) == {"text": prompt}
    labelled = text_label.convert({"text": prompt, "label": answer})
    assert said(labelled) == [("user", prompt), ("assistant", answer.strip())]
    assert labelled["label"] == answer.strip()


@given(st.integers(-(10**15), 10**15))
def test_a_class_is_the_same_as_whole_number_and_as_float(number):
    assert (
        text_label.class_of({"label": number})
        == text_label.class_of({"label": float(number)})
        == str(number)
    )


# Which schema a file has


@pytest.mark.parametrize(
    ("columns", "schema"),
    [
        ("text", "text"),
        ("text id url", "text"),
        ("text label", "text_label"),
        ("text label label_text", "text_label"),
        ("review sentiment", "text_label"),
        ("prompt completion label", "prompt_completion"),
        ("prompt completion text category", "prompt_completion"),
        ("instruction input output", "alpaca"),
        ("instruction input output text", "alpaca"),
        ("instruction output system", "alpaca"),
        ("instruction context response category", "alpaca"),
        ("instruction answer", "alpaca"),
        ("input output", "prompt_completion"),
        ("id system_prompt question response", "prompt_completion"),
        ("source problem solution messages", "messages"),
        ("prompt prompt_id messages category", "messages"),
        ("messages text", "messages"),
        ("messages conversations", "messages"),
        ("id source conversations", "sharegpt"),
        ("conversation_id model conversation", "sharegpt"),
        ("conversations text", "sharegpt"),
        ("source target", "translation"),
        ("id translation", "translation"),
    ],
)
def test_the_columns_choose_the_schema(columns, schema):
    assert find_schema([Example(dict.fromkeys(columns.split(), "x"), "f.jsonl", 1)])[0] == schema


@pytest.mark.parametrize("columns", ["prompt", "label", "source", "target text_b", "words"])
def test_columns_that_are_not_enough(columns):
    with pytest.raises(LorakitError, match="fit no schema"):
        find_schema([Example(dict.fromkeys(columns.split(), "x"), "f.jsonl", 1)])


VALUES = {  # where not the names alone say what a file is
    "templated": "[INST] a? [/INST] b",
    "tool_calls": [{"role": "user", "content": "a?"}, {"role": "tool", "content": "b"}],
    "unpaired": True,
    "image_messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}],
    "sound_text": "a.wav",
}


@each_schema
def test_every_name_of_a_column_is_found_and_taken(name):
    schema, value = SCHEMAS[name], VALUES.get(name)
    for slot, names in enumerate(schema.REQUIRED):
        for chosen in names:
            columns = [chosen if i == slot else other[0] for i, other in enumerate(schema.REQUIRED)]
            row = dict.fromkeys(columns, value)
            assert find_schema([Example(row, "f.jsonl", 1)], schema.GIVES)[0] == name
            with pytest.raises(
                BadRow,
                match="is null|is NoneType|'(source|prompt)'.* is missing|_b' is missing|no picture",
            ):
                schema.convert(dict.fromkeys(columns))


# Templates

FIELDS = {
    "message": "We need {water}",
    "genre": "direct",
    "Related 1": 1,
    "share": 0.5,
    "urgent": True,
    "a.b": "dot",
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Message: {message}\nGenre: {genre}", "Message: We need {water}\nGenre: direct"),
        ("{genre}{genre}", "directdirect"),
        ("{Related 1} {share} {urgent}", "1 0.5 True"),
        ("{a.b}", "dot"),
        ('{{"genre": "{genre}"}}', '{"genre": "direct"}'),
        ("{{genre}}", "{genre}"),
        ("{{{genre}}}", "{direct}"),
        ("no hole\n", "no hole\n"),
        ("", ""),
    ],
)
def test_a_template_takes_the_columns_text(template, expected):
    assert fill(template, FIELDS) == expected


def test_a_template_names_its_columns():
    assert holes("{a} {{b}} {c d}{a}") == ["a", "c d", "a"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{massage}",
            r"names 'massage', which the row has not; did you mean 'message'\? \(columns: .*genre, message",
        ),
        ("{}", "names '', which the row has not"),
        ("{0}", "names '0', which the row has not"),
        ("{genre.upper}", r"names 'genre\.upper', which the row has not"),
        ("{genre.__class__.__mro__}", "which the row has not"),
        ("{share[0]}", r"names 'share\[0\]'"),
        ("{share:>9999999999}", "names 'share:>9999999999'"),
        ("{genre!r}", "names 'genre!r'"),
        ("{genre", "has a single '{'; write '{{' for the character, {name} for a column"),
        ("genre}", "has a single '}'; write '}}' for the character"),
        ("{{genre}", "has a single '}'"),
        ("{gen{re}", "has a single '{'"),
    ],
)
def test_a_template_that_cannot_be_filled(template, words):
    with pytest.raises(LorakitError, match=words):
        fill(template, FIELDS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "'genre' is null"),
        (float("nan"), "'genre' is NaN"),
        ("", "'genre' is empty"),
        (["a"], "'genre' is list, expected text"),
        ("\ud83d", "'genre' holds half a character"),
    ],
)
def test_a_row_that_leaves_a_hole_is_a_bad_row(value, words):
    with pytest.raises(BadRow, match=words):
        fill("Genre: {genre}", {**FIELDS, "genre": value})


@settings(max_examples=100, deadline=None)
@given(st.lists(words | st.sampled_from("{}"), max_size=6), words)
def test_doubled_braces_are_literal(pieces, value):
    written = "".join(p.replace("{", "{{").replace("}", "}}") for p in pieces)
    assert fill(written + "{x}" + written, {"x": value}) == "".join(pieces) + value + "".join(
        pieces
    )
