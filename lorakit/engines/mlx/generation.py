"""Greedy answers by mlx-lm's generators."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def together(
    model: Any, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int]
) -> list[list[int]]:
    """Greedy answers by mlx-lm's batch generator: rows end when they are done."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model,
        max_tokens=max_new_tokens,
        stop_tokens=[[i] for i in stop_ids],
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
    )
    answers: dict[int, list[int]] = {number: [] for number in generator.insert(prompts)}
    while said := generator.next_generated():
        for word in said:
            if word.finish_reason != "stop":
                answers[word.uid].append(word.token)
    generator.close()
    return list(answers.values())


def alone(model: Any, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
    """One greedy answer, for models whose positions are counted from the row's beginning."""
    from mlx_lm.generate import generate_step

    answer: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_new_tokens):
        if token in stop_ids:
            break
        answer.append(token)
    return answer
