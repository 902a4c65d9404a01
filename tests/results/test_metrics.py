import importlib
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lorakit.results.metrics as folder

KINDS = {"answers", "tokens", "labels", "probabilities", "pairs"}
NAMES = sorted(p.stem for p in Path(folder.__path__[0]).glob("*.py") if not p.stem.startswith("_"))
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat,",
    "ran",
    "42",
    "Fast.",
    "well-known",
    "--",
    "café",
]


def metric(name):
    return importlib.import_module(f"lorakit.results.metrics.{name}")


def value(name, references, predictions, **options):
    return metric(name).score(metric(name).rows(references, predictions, **options))


def texts(n=30, seed=0):
    """References and noisy copies of them."""
    rng = np.random.default_rng(seed)
    references, predictions = [], []
    for _ in range(n):
        words = rng.choice(WORDS[:-4], size=rng.integers(3, 12)).tolist()
        references.append(" ".join(words))
        noisy = [
            w if rng.random() < 0.7 else str(rng.choice(WORDS)) for w in words if rng.random() < 0.9
        ]
        predictions.append(" ".join(noisy))
    return references, predictions


def called(text, number):
    """A tool call of a text; every fourth cannot be read."""
    call = json.dumps({"name": f"tool{len(text) % 3}", "arguments": {"of": text}})
    return f"<tool_call>{call if number % 4 else call[:-3]}</tool_call>"


def sample(kind, n=30, seed=0, name=""):
    """References, predictions and options of one kind of input."""
    if name.startswith("call_"):
        references, predictions = texts(n, seed)
        made = [called(text, number) for number, text in enumerate(predictions)]
        return [called(text, 1) for text in references], made, {}
    rng = np.random.default_rng(seed)
    names = ["no", "yes", "maybe"]
    if kind == "answers":
        return *texts(n, seed), {}
    if kind == "tokens":
        tokens = rng.integers(1, 9, size=n)
        return (
            None,
            np.column_stack([rng.gamma(2, size=n) * tokens, tokens, rng.binomial(tokens, 0.6)]),
            {},
        )
    if kind == "labels":
        return rng.choice(names, size=n).tolist(), rng.choice(names, size=n).tolist(), {}
    if (
        kind == "pairs"
    ):  # rewards of the chosen and the rejected answer, nats and tokens of the chosen one
        tokens = rng.integers(1, 9, size=n)
        nats = rng.gamma(2, size=n) * tokens
        return None, np.column_stack([rng.normal(size=n), rng.normal(size=n), nats, tokens]), {}
    return rng.choice(names, size=n).tolist(), rng.dirichlet(np.ones(3), size=n), {"classes": names}


def resample(n, seed):
    return np.random.default_rng(seed).integers(n, size=n)


def pick(items, index):
    return [items[i] for i in index]


# The contract, for every file in the folder


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    module = metric(name)
    assert module.__doc__ and module.rows.__doc__ and module.score.__doc__
    assert isinstance(module.HIGHER_IS_BETTER, bool)
    assert isinstance(module.NEEDS, tuple) and module.NEEDS and set(module.NEEDS) <= KINDS
    for kind in module.NEEDS:
        references, predictions, options = sample(kind, name=name)
        stats = module.rows(references, predictions, **options)
        assert isinstance(stats, np.ndarray) and stats.dtype == np.float64
        assert stats.ndim == 2 and len(stats) == 30 and np.isfinite(stats).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            whole = module.score(stats)
            assert type(whole) is float and math.isfinite(whole)
            assert module.score(np.vstack([stats, stats])) == pytest.approx(whole)
            assert type(module.score(stats[:1])) is float
            assert math.isnan(module.score(stats[:0]))
        order = np.random.default_rng(1).permutation(30)
        assert module.score(stats[order]) == pytest.approx(whole)
        shuffled = None if references is None else pick(references, order)
        assert value(name, shuffled, pick(predictions, order), **options) == pytest.approx(whole)
        with pytest.raises(TypeError):
            module.rows(references, predictions, **options, no_such_option=1)
        if references is not None:
            with pytest.raises(ValueError):
                module.rows(references, predictions[:-1], **options)


@pytest.mark.parametrize("name", NAMES)
def test_direction(name):
    """A better prediction moves the score the way HIGHER_IS_BETTER says."""
    module = metric(name)
    references, predictions, options = sample(module.NEEDS[0], name=name)
    if module.NEEDS == ("tokens",):
        better = predictions * [0.5, 1, 0] + np.outer(predictions[:, 1], [0, 0, 1])
    elif module.NEEDS == ("pairs",):
        better = predictions * [1, 1, 0.5, 1] + [1, 0, 0, 0]
    elif module.NEEDS == ("probabilities",):
        better = [[float(c == r) for c in options["classes"]] for r in references]
    else:
        better = references
    gain = value(name, references, better, **options) - value(
        name, references, predictions, **options
    )
    assert (gain > 0) == module.HIGHER_IS_BETTER and gain != 0


def test_imports_are_cheap():
    code = "; ".join(
        [
            *(f"import lorakit.results.metrics.{name}" for name in NAMES),
            "import lorakit.results.intervals, sys",
            "print(*sorted({m.split('.')[0] for m in sys.modules}))",
        ]
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(folder.__path__[0]).parents[1],
    ).stdout.split()
    assert not {"torch", "sklearn", "scipy", "sacrebleu", "rouge_score", "nltk", "jiwer"} & set(
        loaded
    )


# Values worked out by hand


def test_token_metrics():
    stats = [[3.0, 2, 1], [1.0, 2, 2]]
    assert value("loss", None, stats) == 1.0
    assert value("perplexity", None, stats) == pytest.approx(math.e)
    assert value("token_accuracy", None, stats) == 0.75
    assert value("perplexity", None, [[4000.0, 2, 0]]) == math.inf
    assert math.isnan(value("loss", None, [[0.0, 0, 0]]))
    with pytest.raises(ValueError, match="shape"):
        metric("loss").rows(None, [1.0, 2.0])


def test_exact_match():
    assert value("exact_match", ["a", "b", "c d", "x"], [" a\n", "B", "c  d", "x"]) == 0.5
    assert value("exact_match", ["a", "STRASSE"], ["A", "straße"], ignore_case=True) == 1.0


def test_exact_match_pattern():
    pattern = r"####\s*(-?[\d.,]+)"
    references = ["so #### 7", "#### 1,200", "#### -3", "#### 5"]
    predictions = ["#### 8, no: #### 7", "1,200", "####-3 apples", "#### 5 then #### 6"]
    stats = metric("exact_match").rows(references, predictions, pattern=pattern)
    assert stats.tolist() == [[1], [0], [1], [0]]
    with pytest.raises(ValueError, match="row 1: "):
        metric("exact_match").rows(["#### 1", "1"], ["#### 1", "#### 1"], pattern=pattern)
    with pytest.raises(ValueError, match="group"):
        metric("exact_match").rows(["1"], ["1"], pattern=r"\d+")


def test_accuracy():
    assert value("accuracy", ["x", "y", "y", "x"], ["x", "x", "y", " x"]) == 0.75


@pytest.mark.parametrize(
    "average, expected",
    [
        # a: 1 hit, 2 references, 1 prediction: 2/3. b: 2, 2, 3: 4/5. c: 0, 0, 1: 0. d: 1, 2, 1: 2/3.
        ("macro", (2 / 3 + 4 / 5 + 0 + 2 / 3) / 4),
        ("micro", 4 / 6),
        ("weighted", (2 * 2 / 3 + 2 * 4 / 5 + 2 * 2 / 3) / 6),
    ],
)
def test_f1(average, expected):
    references, predictions = list("aabbdd"), list("abbbcd")
    assert value("f1", references, predictions, average=average) == pytest.approx(expected)


def test_f1_counts_only_the_classes_of_the_selection():
    stats = metric("f1").rows(list("abcc"), list("abca"))
    assert metric("f1").score(stats[:2]) == 1.0
    with pytest.raises(ValueError, match="average"):
        metric("f1").rows(["a"], ["a"], average="mean")


def test_roc_auc():
    """Pairs (yes, no): .9 > .4, .9 > .1, .4 = .4 (half), .4 > .1: 3.5 of 4."""
    p = np.array([0.9, 0.4, 0.4, 0.1])
    predictions = np.column_stack([1 - p, p])
    assert (
        value("roc_auc", ["yes", "yes", "no", "no"], predictions, classes=["no", "yes"]) == 3.5 / 4
    )
    stats = metric("roc_auc").rows(["yes", "yes", "no", "no"], predictions, classes=["no", "yes"])
    assert math.isnan(metric("roc_auc").score(stats[:2]))


def test_roc_auc_one_versus_rest():
    """a: .6 above .3 and .1: 1. b: .3 above .2, level with .3: 3/4. c: .6 above .2 and .4: 1."""
    predictions = [[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0.1, 0.3, 0.6]]
    assert value("roc_auc", list("abc"), predictions, classes=list("abc")) == pytest.approx(
        2.75 / 3
    )


@pytest.mark.parametrize(
    "references, predictions, classes, message",
    [
        (["no"], [[1.0]], ["no"], "two classes"),
        (["no", "?"], [[1.0, 0.0]] * 2, ["no", "yes"], "row 1: "),
        (["no"], [[1.0, 0.0, 0.0]], ["no", "yes"], "shape"),
        (["no"], [[1.0, math.nan]], ["no", "yes"], "finite"),
    ],
)
def test_roc_auc_errors(references, predictions, classes, message):
    with pytest.raises(ValueError, match=message):
        metric("roc_auc").rows(references, predictions, classes=classes)


def test_bleu():
    """Matched / predicted n-grams: 5/6, 3/5, 2/4, 1/3; no brevity penalty."""
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert value("bleu", ["the cat sat on the mat"], ["the dog sat on the mat"]) == pytest.approx(
        expected
    )
    assert value("bleu", ["a b c d e f g h"], ["a b c d"]) == pytest.approx(
        100 * math.exp(1 - 8 / 4)
    )
    assert value("bleu", ["A B C D"], ["a b c d"]) == 0
    assert value("bleu", ["A B C D"], ["a b c d"], lowercase=True) == pytest.approx(100)
    assert value("bleu", ["abcd"], ["abcd"], tokenize="char") == pytest.approx(100)


def test_chrf():
    """Prediction abc, reference ab: precision 2/3, 1/2; recall 1, 1; order 3 has no reference."""
    precision, recall = (2 / 3 + 1 / 2) / 2, 1
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert value("chrf", ["ab"], ["abc"]) == pytest.approx(expected)
    assert value("chrf", ["ab"], ["xy"]) == 0


def test_rouge():
    """Five of six words in order, so precision and recall 5/6; of five bigrams three."""
    pair = ["the cat sat on the mat"], ["the dog sat on the mat"]
    assert value("rouge", *pair) == pytest.approx(5 / 6)
    assert value("rouge", *pair, variant="rouge1") == pytest.approx(5 / 6)
    assert value("rouge", *pair, variant="rouge2") == pytest.approx(3 / 5)
    assert value("rouge", ["a b\nc d"], ["c d\na b"], variant="rougeL") == pytest.approx(1 / 2)
    assert value("rouge", ["a b\nc d"], ["c d\na b"], variant="rougeLsum") == pytest.approx(1)
    with pytest.raises(ValueError, match="variant"):
        metric("rouge").rows(*pair, variant="rouge9")
    with pytest.raises(ValueError, match="chrf"):
        metric("rouge").rows(["你好"], ["你好"])


def test_wer():
    """Row 0: one substitution, one insertion in 3 words. Row 1: two deletions in 2 words."""
    references, predictions = ["the cat sat", "good dog"], ["the dog sat down", ""]
    assert metric("wer").rows(references, predictions).tolist() == [[2, 3], [2, 2]]
    assert value("wer", references, predictions) == 4 / 5


def test_cer():
    """kitten, sitting: two substitutions, one insertion in 6 characters."""
    assert value("cer", ["kitten"], ["sitting"]) == 3 / 6
    assert value("cer", ["a b"], ["ab"]) == 1 / 3


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_error_rate_normalize(name):
    reference, prediction = ["It's  a well-known\tcat."], ["its a wellknown\ncat"]
    assert value(name, reference, prediction) == 0
    assert value(name, reference, prediction, normalize=False) > 0
    for empty, options in [("", {}), ("...", {}), (" ", {"normalize": False})]:
        with pytest.raises(ValueError, match="row 1: .*empty"):
            metric(name).rows(["a", empty], ["a", "b"], **options)


# The same numbers as the libraries, on the whole set and on resamples


def check(name, references, predictions, reference_score, options=None, resamples=8, approx=1e-12):
    stats = metric(name).rows(references, predictions, **(options or {}))
    n = len(stats)
    for index in [np.arange(n), *(resample(n, seed) for seed in range(resamples))]:
        theirs = reference_score(pick(references, index), pick(predictions, index))
        assert metric(name).score(stats[index]) == pytest.approx(theirs, rel=approx, abs=approx)


@pytest.mark.parametrize("options", [{}, {"tokenize": "char", "lowercase": True}])
def test_bleu_is_sacrebleu(options):
    from sacrebleu.metrics import BLEU

    check("bleu", *texts(), lambda r, p: BLEU(**options).corpus_score(p, [r]).score, options)


@pytest.mark.parametrize("options", [{}, {"word_order": 2}])
def test_chrf_is_sacrebleu(options):
    from sacrebleu.metrics import CHRF

    check("chrf", *texts(), lambda r, p: CHRF(**options).corpus_score(p, [r]).score, options)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=4))
def test_sacrebleu_on_any_text(pairs):
    from sacrebleu.metrics import BLEU, CHRF

    references, predictions = map(list, zip(*pairs))
    for name, theirs in [("bleu", BLEU()), ("chrf", CHRF())]:
        expected = theirs.corpus_score(predictions, [references]).score
        assert value(name, references, predictions) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_rouge_score(variant):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([variant])

    def mean_f(references, predictions):
        return np.mean(
            [scorer.score(r, p)[variant].fmeasure for r, p in zip(references, predictions)]
        )

    check("rouge", *texts(), mean_f, {"variant": variant})


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_error_rates_are_jiwer(name):
    import jiwer

    check(name, *texts(), getattr(jiwer, name), {"normalize": False})


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("n", [3, 40])
def test_f1_is_sklearn(average, n):
    from sklearn.metrics import f1_score

    references, predictions, _ = sample("labels", n)
    predictions[0] = "never in the references"
    options = {"average": average}
    check("f1", references, predictions, lambda r, p: f1_score(r, p, **options), options)


@pytest.mark.parametrize("n", [2, 3])
def test_roc_auc_is_sklearn(n):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    classes = ["c", "a", "b"][:n]
    references = rng.choice(classes, size=60).tolist()
    tied = rng.integers(1, 4, size=(60, n)).astype(float)

    def sklearn_score(references, predictions):
        codes, p = [classes.index(r) for r in references], np.array(predictions)
        return roc_auc_score(codes, p[:, 1] if n == 2 else p, multi_class="ovr", average="macro")

    for weights in (tied, rng.gamma(1, size=(60, n))):
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        check("roc_auc", references, probabilities, sklearn_score, {"classes": classes})


def test_accuracy_is_sklearn():
    from sklearn.metrics import accuracy_score

    references, predictions, _ = sample("labels")
    check("accuracy", references, predictions, accuracy_score)


def test_answers_that_stand_alone_are_ranked_each_against_each():
    """Shape (n, 4) with nan for the side that a row lacks: the share of pairs ranked right is the ROC's area."""
    from lorakit.results.metrics import preference_accuracy, reward_margin

    nan = float("nan")
    found = np.array([[2.0, nan, 5, 1], [nan, 1.0, 0, 0], [1.0, nan, 5, 1], [nan, 0.0, 0, 0]])
    assert preference_accuracy.score(preference_accuracy.rows([], found)) == (2 + 1.5) / 4
    assert reward_margin.score(reward_margin.rows([], found)) == 1.0
    one_kind = preference_accuracy.rows([], found[[0, 2]])
    assert np.isnan(preference_accuracy.score(one_kind)) and np.isnan(reward_margin.score(one_kind))
