"""Labels of groups of text: which are taken, their language tags, and their colors."""

import itertools
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

from interp.text.counterfactuals import KINDS, SEPARATOR
from interp.text.languages import (
    LANGUAGES,
    Tags,
    given_tags,
    is_language,
    language_of,
    language_tag,
    read_tag,
    tagged,
)

MOST_LABELS = 1000
"""More labels in one call are refused: each has statistics of all neurons."""

_LONGEST = 100  # characters; file systems take 255 bytes, and pieces of a run add to the name
_FORBIDDEN = '/\\:*?"<>|=,;'


def check_labels(labels: Sequence[str], tags: Tags | None = None) -> tuple[str, ...]:
    """The labels as a tuple; refuses those that cannot name a file, and repetitions.

    Two labels with one language tag count as a repetition, as `de` and `deu_Latn`. `tags` gives
    labels a language tag.
    """
    if isinstance(labels, str):
        raise ValueError(
            f"Labels were given as the one string {labels!r}; give a list, such as ['en', 'fr']."
        )
    if not labels:
        raise ValueError("No label was given: give at least one, such as en.")
    if len(labels) > MOST_LABELS:
        raise ValueError(
            f"{len(labels):,} labels were given; at most {MOST_LABELS:,} are taken, since each has "
            "statistics of all neurons. Group them, or give some of them."
        )
    tags = tags_of(labels, tags)
    by_tag: dict[str, str] = {}
    for label in labels:
        if problem := label_problem(label):
            raise ValueError(f"{label!r:.200} cannot be a label: {problem}.")
        tag = tag_of(label, tags)
        if label not in tags and tag and (usual := _usual_case(label)) != label:
            raise ValueError(
                f"{label!r} is the language tag {usual} in unusual case: name it {usual}, or give "
                f"it the tag {usual}, or an empty one if it is not a language."
            )
        if (other := by_tag.setdefault(label if label in tags or not tag else tag, label)) != label:
            raise ValueError(
                f"{other} and {label} are both the language tag {tag}: rename one of them, and "
                "give it the tag."
            )
    if repeated := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise ValueError(f"{', '.join(repeated)} is given more than once; give each label once.")
    return tuple(labels)


def labels_among(labels: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """The labels as a tuple; refuses repetitions and labels that `what` does not hold."""
    if isinstance(labels, str) or not labels or len(set(labels)) < len(labels):
        return check_labels(labels)
    if missing := [label for label in labels if label not in known]:
        raise ValueError(f"{', '.join(missing)}: not in {what}, which hold {', '.join(known)}.")
    return tuple(labels)


def label_problem(label: str) -> str | None:
    """Why a label cannot name a file, a table's cell or an option, in words; None: it can."""
    if not label or not (label[0].isalnum() or label[0] == "_"):
        return "it must begin with a letter, a digit or an underscore"
    if len(label) > _LONGEST:
        return f"it has {len(label)} characters, and at most {_LONGEST} are taken"
    if strange := [x for x in label if x in _FORBIDDEN or unicodedata.category(x)[0] == "C"]:
        return f"it holds {strange[0]!r}, and labels name files"
    if label[-1] in " .":
        return "it ends with a space or a period"
    _, separator, kind = label.partition(SEPARATOR)
    if separator and kind not in KINDS:
        return f"behind {SEPARATOR} stands a kind of counterfactual, one of {', '.join(KINDS)}"
    return None


def tags_of(labels: Sequence[str], tags: Tags | None = None) -> dict[str, str]:
    """The tags that labels are given: these, and those of the block that this is called in; refuses
    tags of other labels, and what is no tag."""
    for label, tag in (tags or {}).items():
        if label not in labels:
            raise ValueError(
                f"The tag {tag!r} is given to {label!r}, which is not among the labels "
                f"({', '.join(labels[:20])}): give the label too, or leave the tag out."
            )
    with tagged(tags or {}):
        return given_tags(labels)


def tag_of(label: str, tags: Tags | None = None) -> str | None:
    """The tag of the language that a label's text is in; None: it has none."""
    return read_tag(tags[label]) if tags and label in tags else language_tag(label)


def label_colors(labels: Sequence[str]) -> list[str]:
    """A color for each label of a figure: listed languages have their own, the same everywhere, and
    so has a label that is given one which no other label of the figure has (`tagged`).

    Other labels get colors of the list that no label has, in order, so that the first ones are
    those that differ most; those that look like a color of a listed language come last. They
    depend on the labels before them.
    """
    known = [language_of(label) for label in labels]
    times = Counter(language.code for language in known if language)
    own = [
        language.color if language and (is_language(label) or times[language.code] == 1) else ""
        for label, language in zip(labels, known, strict=True)
    ]
    palette = [row.color for row in LANGUAGES.values()]
    taken = [_oklab(color) for color in own if color]

    def looks_taken(color: str) -> bool:
        return any(math.dist(_oklab(color), other) < _ALIKE for other in taken)

    free = sorted((color for color in palette if color not in own), key=looks_taken) or palette
    others = itertools.cycle(free)
    return [color or next(others) for color in own]


_ALIKE = 0.15
"""Distance in Oklab below which thin lines and small dots of two colors are taken for one."""


def _oklab(color: str) -> tuple[float, float, float]:
    """Coordinates in which equal distances look equally different (Ottosson, 2020)."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    )
    long = math.cbrt(0.4122 * red + 0.5363 * green + 0.0514 * blue)
    medium = math.cbrt(0.2119 * red + 0.6807 * green + 0.1074 * blue)
    short = math.cbrt(0.0883 * red + 0.2817 * green + 0.6300 * blue)
    return (
        0.2105 * long + 0.7936 * medium - 0.0041 * short,
        1.9780 * long - 2.4286 * medium + 0.4506 * short,
        0.0259 * long + 0.7828 * medium - 0.8087 * short,
    )


def _usual_case(label: str) -> str:
    """A tag as it is usually written: `zh-Hant-TW`, `deu_Latn`."""
    parts = label.replace("_", "-").split("-")
    cased = [parts[0].lower()]
    for part in parts[1:]:
        change = {2: str.upper, 4: str.title}.get(len(part), str.lower)
        cased.append(change(part))
    separators = [x for x in label if x in "-_"]
    return cased[0] + "".join(itertools.chain(*zip(separators, cased[1:], strict=True)))
