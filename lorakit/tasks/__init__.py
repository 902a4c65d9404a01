"""What a row trains, one module each.

Contract: `GIVES`, the field of an `Example` it takes; `OBJECTIVE`, what an engine must serve (`tokens`: predict the
marked tokens; `labels`: predict a class); `UNIT`, what is counted; `METRICS`, scored unless the run names others;
`COLUMNS`, the kind of each column of a row (`["int32"]` is a list); `encode(example, tokenizer, max_length)` gives rows
and raises `BadRow`; `ask(question, tokenizer)` is the prompt, as token ids, for a question put by a person;
`guard(rows, tokenizer)` raises `LorakitError` when training on these rows would be pointless;
`stop_ids(rows, tokenizer)` lists the tokens that end an answer; `opening(tokenizer)` is the token after which its words
begin, or None.

A row of a token task holds `ids` (T,) and `targets` (T,), true where the token is trained. A row with an answer to
generate also holds `answer_start`, `prompt` and `reference`.
"""
