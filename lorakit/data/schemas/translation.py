"""A sentence and its translation, or both under their languages (https://huggingface.co/docs/datasets, `Translation`).

{"source": "Wo ist das Wasser?", "target": "Where is the water?"}

In the other form, `{"translation": {"de": "Wo ist das Wasser?", "en": "Where is the water?"}}`, the first language is
the source.
"""

from lorakit.common.errors import BadRow
from lorakit.data.schemas import text_of, turns

GIVES = "messages"
RICHNESS = 25
REQUIRED = (("source", "translation"), ("target", "translation"))  # `translation` alone is both
OPTIONAL = ()


def convert(fields: dict) -> dict:
    both = fields
    names: list[tuple[str, ...]] = [("source",), ("target", "translation")]
    if isinstance(fields.get("translation"), dict):
        both = fields["translation"]
        if len(both) != 2:
            raise BadRow(
                f"'translation' has the languages {[*both][:9]}, expected two; name two columns source and "
                "target instead"
            )
        names = [(language,) for language in both]
    return turns(text_of(both, names[0]), text_of(both, names[1], number=True))
