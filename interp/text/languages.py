"""What is known about the language that a label names: tag, name, script, family, direction.

The names and colors of common languages are listed here, so that figures do not change with the
version of a package. All other languages are those of `langcodes`, which is imported when a label
is not in the list.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from interp.text.counterfactuals import SEPARATOR


@dataclass(frozen=True)
class Language:
    """One language, as named in files, figures and tables."""

    code: str
    """Its tag in BCP-47, in its shortest form, such as `fr` or `sr-Latn`."""

    name: str
    """English name."""

    endonym: str
    """Name in the language itself."""

    script: str
    """Usual script, in English: Latin, Cyrillic, Han, ..."""

    family: str
    """Language family; for Indo-European, which is so large, its branch (Germanic, ...). Empty: not
    listed here."""

    color: str = ""
    """Hex, the same in every figure; readable on white, also in grayscale. Empty: each figure
    chooses a color, see `interp.text.labels.label_colors`."""

    @property
    def direction(self) -> Literal["ltr", "rtl"]:
        """Whether its script is written from left to right or from right to left."""
        return "rtl" if self.script in _RIGHT_TO_LEFT else "ltr"


# Colors: the first eight follow the color-blind-safe set of Okabe and Ito, with two pale colors
# replaced by indigo and wine. Each later color is the one farthest from all earlier ones, as seen
# with full vision and with each of the three kinds of color blindness. With more than about ten
# languages in one figure no palette is enough: labels must identify them.
_ROWS = (
    Language("en", "English", "English", "Latin", "Germanic", "#0072b2"),
    Language("de", "German", "Deutsch", "Latin", "Germanic", "#d55e00"),
    Language("fr", "French", "français", "Latin", "Romance", "#332288"),
    Language("es", "Spanish", "español", "Latin", "Romance", "#e69f00"),
    Language("zh", "Chinese", "中文", "Han", "Sino-Tibetan", "#882255"),
    Language("ja", "Japanese", "日本語", "Japanese", "Japonic", "#cc79a7"),
    Language("vi", "Vietnamese", "Tiếng Việt", "Latin", "Austroasiatic", "#009e73"),
    Language("id", "Indonesian", "Bahasa Indonesia", "Latin", "Austronesian", "#56b4e9"),
    Language("ru", "Russian", "русский", "Cyrillic", "Slavic", "#111111"),
    Language("ar", "Arabic", "العربية", "Arabic", "Afro-Asiatic", "#9922ff"),
    Language("hi", "Hindi", "हिन्दी", "Devanagari", "Indo-Aryan", "#552200"),
    Language("pt", "Portuguese", "português", "Latin", "Romance", "#0022cc"),
    Language("ko", "Korean", "한국어", "Hangul", "Koreanic", "#9977ee"),
    Language("th", "Thai", "ไทย", "Thai", "Tai-Kadai", "#bb0000"),
    Language("sw", "Swahili", "Kiswahili", "Latin", "Atlantic-Congo", "#332244"),
    Language("ur", "Urdu", "اردو", "Arabic", "Indo-Aryan", "#aa3388"),
    Language("tr", "Turkish", "Türkçe", "Latin", "Turkic", "#bbaa77"),
    Language("it", "Italian", "italiano", "Latin", "Romance", "#885555"),
    Language("bn", "Bengali", "বাংলা", "Bengali", "Indo-Aryan", "#006600"),
    Language("te", "Telugu", "తెలుగు", "Telugu", "Dravidian", "#cc22bb"),
    Language("el", "Greek", "ελληνικά", "Greek", "Hellenic", "#773399"),
    Language("bg", "Bulgarian", "български", "Cyrillic", "Slavic", "#552266"),
    Language("nl", "Dutch", "Nederlands", "Latin", "Germanic", "#ee7733"),
    Language("pl", "Polish", "polski", "Latin", "Slavic", "#ff77cc"),
    Language("uk", "Ukrainian", "українська", "Cyrillic", "Slavic", "#7766dd"),
    Language("cs", "Czech", "čeština", "Latin", "Slavic", "#663333"),
    Language("sv", "Swedish", "svenska", "Latin", "Germanic", "#8899ff"),
    Language("da", "Danish", "dansk", "Latin", "Germanic", "#aa77cc"),
    Language("no", "Norwegian", "norsk", "Latin", "Germanic", "#996655"),
    Language("fi", "Finnish", "suomi", "Latin", "Uralic", "#ff4488"),
    Language("hu", "Hungarian", "magyar", "Latin", "Uralic", "#0044dd"),
    Language("ro", "Romanian", "română", "Latin", "Romance", "#dd0033"),
    Language("ca", "Catalan", "català", "Latin", "Romance", "#5500aa"),
    Language("gl", "Galician", "galego", "Latin", "Romance", "#bb7755"),
    Language("eu", "Basque", "euskara", "Latin", "isolate", "#aa9955"),
    Language("hr", "Croatian", "hrvatski", "Latin", "Slavic", "#444477"),
    Language("sr", "Serbian", "српски", "Cyrillic", "Slavic", "#330077"),
    Language("sk", "Slovak", "slovenčina", "Latin", "Slavic", "#442222"),
    Language("sl", "Slovenian", "slovenščina", "Latin", "Slavic", "#558888"),
    Language("lt", "Lithuanian", "lietuvių", "Latin", "Baltic", "#dd88aa"),
    Language("lv", "Latvian", "latviešu", "Latin", "Baltic", "#556699"),
    Language("et", "Estonian", "eesti", "Latin", "Uralic", "#665577"),
    Language("he", "Hebrew", "עברית", "Hebrew", "Afro-Asiatic", "#55aacc"),
    Language("fa", "Persian", "فارسی", "Arabic", "Iranian", "#772211"),
    Language("ms", "Malay", "Bahasa Melayu", "Latin", "Austronesian", "#bb44ff"),
    Language("tl", "Tagalog", "Tagalog", "Latin", "Austronesian", "#993333"),
    Language("jv", "Javanese", "Basa Jawa", "Latin", "Austronesian", "#7733bb"),
    Language("ta", "Tamil", "தமிழ்", "Tamil", "Dravidian", "#dd22aa"),
    Language("ml", "Malayalam", "മലയാളം", "Malayalam", "Dravidian", "#553388"),
    Language("kn", "Kannada", "ಕನ್ನಡ", "Kannada", "Dravidian", "#772266"),
    Language("mr", "Marathi", "मराठी", "Devanagari", "Indo-Aryan", "#0000ee"),
    Language("gu", "Gujarati", "ગુજરાતી", "Gujarati", "Indo-Aryan", "#224422"),
    Language("pa", "Punjabi", "ਪੰਜਾਬੀ", "Gurmukhi", "Indo-Aryan", "#33aa88"),
    Language("ne", "Nepali", "नेपाली", "Devanagari", "Indo-Aryan", "#776633"),
    Language("my", "Burmese", "မြန်မာ", "Myanmar", "Sino-Tibetan", "#cc1111"),
    Language("km", "Khmer", "ខ្មែរ", "Khmer", "Austroasiatic", "#223355"),
    Language("lo", "Lao", "ລາວ", "Lao", "Tai-Kadai", "#bb22aa"),
    Language("ka", "Georgian", "ქართული", "Georgian", "Kartvelian", "#9955cc"),
    Language("hy", "Armenian", "հայերեն", "Armenian", "Armenian", "#cc66aa"),
    Language("az", "Azerbaijani", "azərbaycanca", "Latin", "Turkic", "#660055"),
    Language("kk", "Kazakh", "қазақша", "Cyrillic", "Turkic", "#cc22dd"),
    Language("uz", "Uzbek", "oʻzbekcha", "Latin", "Turkic", "#77bb55"),  # noqa: RUF001
    Language("mn", "Mongolian", "монгол", "Cyrillic", "Mongolic", "#884466"),
    Language("am", "Amharic", "አማርኛ", "Ethiopic", "Afro-Asiatic", "#446644"),
    Language("yo", "Yoruba", "Yorùbá", "Latin", "Atlantic-Congo", "#440066"),
    Language("zu", "Zulu", "isiZulu", "Latin", "Atlantic-Congo", "#338833"),
    Language("ha", "Hausa", "Hausa", "Latin", "Afro-Asiatic", "#ff0077"),
    Language("af", "Afrikaans", "Afrikaans", "Latin", "Germanic", "#443377"),
)

LANGUAGES: Mapping[str, Language] = MappingProxyType({row.code: row for row in _ROWS})
"""The listed languages by code, in the order of legends and tables."""

_RIGHT_TO_LEFT = ("Arabic", "Hebrew", "Syriac", "Thaana", "N’Ko", "Adlam", "Hanifi")  # noqa: RUF001

_MORE_FAMILIES = {
    "Afro-Asiatic": "aa kab mt om shi so ti tzm",
    "Albanian": "sq",
    "Atlantic-Congo": "ig lg ln nso ny rn rw sn ss st tn ts tum ve wo xh ak bm ee ff kg ki kmb lua",
    "Austroasiatic": "kha sat",
    "Austronesian": "ace ban bjn bug ceb fj haw ilo mg mi min pag sm su to war",
    "Celtic": "br cy ga gd gv kw",
    "Dravidian": "tcy",
    "Germanic": "fo fy is lb li nb nn sco yi",
    "Indo-Aryan": "as awa bho gom hne mag mai or sa sd si",
    "Iranian": "ckb ku os ps tg",
    "Italic": "la",
    "Quechuan": "qu",
    "Romance": "ast co fur ht lij lmo oc rm sc scn vec wa",
    "Sino-Tibetan": "bo dz yue wuu mni lus",
    "Slavic": "be bs cu hsb mk szl",
    "Tai-Kadai": "shn",
    "Tupian": "gn",
    "Turkic": "ba crh cv ky sah tk tt tyv ug",
    "Uralic": "se mrj mhr kv udm",
}
_FAMILIES = {code: family for family, codes in _MORE_FAMILIES.items() for code in codes.split()}
"""Families of languages that are not listed above, as in the list."""

_SCRIPTS = {"Hans": "Han", "Hant": "Han", "Jpan": "Japanese", "Kore": "Hangul", "Beng": "Bengali"}
"""Scripts whose name in `langcodes` differs from that in the list."""

_GENERIC = ("Hani", "Hang")
"""Scripts that FLORES names where BCP-47 has the combination in use, `Hans` and `Kore`."""

_TAG = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{2,8})*", re.IGNORECASE)

VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "yue": "zh",
        "wuu": "zh",
        "cmn": "zh",
        "nn": "no",
        "nb": "no",
        "arb": "ar",
        "ary": "ar",
        "arz": "ar",
        "fil": "tl",
        "iw": "he",
        "in": "id",
    }
)
"""Codes of written variants, and old codes → the language they count as.

Malay (`ms`) is not a variant of Indonesian (`id`): models are trained on both and differ on them.
"""


Tags = Mapping[str, str]
"""Label → language tag, for labels that are no tag: {"poetry": "en"}. An empty tag says that a
label is not a language, although it looks like the tag of one: {"pop": ""}."""

_NONE: Tags = MappingProxyType({})
_given: ContextVar[Tags] = ContextVar("tags", default=_NONE)


@contextmanager
def tagged(tags: Tags) -> Iterator[None]:
    """Within the block, the text of these labels is in these languages: {"poetry": "en"}.

    So figures, pages, reports and detection treat it; a run remembers its tags (`Run.tags`). An
    empty tag says that a label is no language: {"pop": ""}.

    >>> with interp.text.tagged({"poetry": "de"}):
    ...     print(interp.text.naming_prompt("poetry"))
    Hier steht ein Text auf Deutsch:
    """
    for label, tag in tags.items():
        if tag and read_tag(tag) is None:
            raise ValueError(
                f"{tag!r}, given to {label!r}, is not a language tag: give one such as en, cy, "
                "deu_Latn or sr-Latn, or an empty one if the label is not a language."
            )
    token = _given.set({**_given.get(), **tags})
    try:
        yield
    finally:
        _given.reset(token)


def given_tags(labels: Iterable[str]) -> dict[str, str]:
    """The tags that these labels are given where this is called, see `tagged`."""
    return {label: _given.get()[label] for label in labels if label in _given.get()}


def recorded_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """The tags of labels that a run's provenance records, as far as they are tags."""
    tags = record.get("tags")
    pairs = tags.items() if isinstance(tags, Mapping) else ()
    return {
        label: tag for label, tag in pairs if isinstance(tag, str) and (not tag or read_tag(tag))
    }


def language_tag(label: str) -> str | None:
    """The tag of the language of a label's text; None: it has none.

    It is the one that the label is given (`tagged`), or else the one that it is (`read_tag`).
    """
    return read_tag(_given.get().get(label, label))


def is_language(label: str) -> bool:
    """Whether a label names a language: `de` does; `poetry` does not, whatever its text is in."""
    return read_tag(label) is not None and language_tag(label) is not None


@cache
def read_tag(label: str) -> str | None:
    """The BCP-47 tag that a text is, in its shortest form; None: it is not the tag of a language.

    ISO 639-1 and 639-3, BCP-47 and FLORES (`deu_Latn`) are understood. The script is left out where
    it is the usual one, and a main variety counts as its macrolanguage (`cmn` as `zh`, `arb` as
    `ar`, but `arz` and `ary` stay). Three letters alone are a tag only if the language has speakers
    today: there are over 7,000 such codes, and `law` and `pop` are among them.
    """
    if label in LANGUAGES:
        return label
    if not _TAG.fullmatch(label):
        return None
    import langcodes  # a quarter of a second, which only labels outside the list need

    if not langcodes.tag_is_valid(label):
        return None
    tag = langcodes.Language.get(langcodes.standardize_tag(label, macro=True))
    alone = langcodes.Language.get(tag.language or "und")
    if tag.language in (None, "und", "mul", "mis", "zxx"):
        return None
    if len(label) == 3 and not alone.speaking_population():
        return None
    if tag.script in (*_GENERIC, alone.maximize().script):
        tag = tag.update_dict({"script": None})
    short = tag.to_tag()
    return {"fil": "tl"}.get(short, short)  # the list has Tagalog under its older code


def called(labels: Iterable[str]) -> Literal["languages", "labels"]:
    """What labels are called together: labels, if one of them is no language.

    A counterfactual, such as `ru~romanised`, counts as its language.
    """
    bases = (label.partition(SEPARATOR)[0] for label in labels)
    return "languages" if all(map(is_language, bases)) else "labels"


def worded(text: str, labels: Iterable[str]) -> str:
    """A text of ours about these labels: it says label for language if one of them is no language.

    >>> interp.text.languages.worded("It fires most in any language.", ["poetry", "prose"])
    'It fires most for any label.'
    """
    labels = tuple(labels)
    return text if called(labels) == "languages" else as_labels(text, labels)


def as_labels(text: str, labels: Iterable[str] = ()) -> str:
    """The text with label for language, except in names of these labels, as in sign language."""
    names = "|".join(re.escape(label) for label in labels if "anguage" in label)
    parts = re.split(f"({names})", text) if names else [text]
    for words, instead in _LANGUAGE_TO_LABEL:
        parts[::2] = [words.sub(instead, part) for part in parts[::2]]
    return "".join(parts)


_LANGUAGE_TO_LABEL = (
    (re.compile(r"\bin (?=(\w+ )?languages?\b)"), "for "),  # text is in a language, not in a label
    (re.compile(r"\blanguage(?=s?\b)"), "label"),
    (re.compile(r"\bLanguage(?=s?\b)"), "Label"),
)


def language_of(label: str) -> Language | None:
    """The language of a label's text, by its tag; None: it has no tag."""
    code = language_tag(label)
    return None if code is None else _known(code)


@cache
def _known(code: str) -> Language:
    if code in LANGUAGES:
        return LANGUAGES[code]
    import langcodes

    tag = langcodes.Language.get(code)
    script = tag.maximize()
    alone = str(tag.language)
    listed = LANGUAGES.get(VARIANTS.get(alone, alone))
    return Language(
        code=code,
        name=tag.display_name("en"),
        endonym=tag.autonym(),
        script=_SCRIPTS.get(str(script.script), str(script.script_name("en"))),
        family=listed.family if listed else _FAMILIES.get(alone, ""),
    )


def language(label: str) -> Language:
    """The language of a label's text; refuses a label that has none."""
    known = language_of(label)
    if known is None:
        raise ValueError(
            f"{label!r} is not the tag of a language, such as en, cy, deu_Latn or sr-Latn: a "
            "language is needed here."
        )
    return known


def label_name(label: str) -> str:
    """The English name of the language that a label names, or else the label itself.

    A counterfactual keeps what it is: `Russian~romanised`.
    """
    base, separator, kind = label.partition(SEPARATOR)
    known = language_of(base) if is_language(base) else None
    return (known.name if known else base) + separator + kind


def names_beside(labels: Sequence[str]) -> list[list[str]]:
    """For tables whose rows begin with a label: a cell with the name of its language, if that is
    another; no cells if no label has one.

    >>> interp.text.languages.names_beside(["de", "poetry"])
    [['German'], ['']]
    >>> interp.text.languages.names_beside(["poetry", "prose"])
    [[], []]
    """
    names = [_name_beside(label) for label in labels]
    return [[name] * any(names) for name in names]


def _name_beside(label: str) -> str:
    known = language_of(label)
    name = known.name if known else label_name(label)
    return name if name != label else ""


OPENINGS = {
    "en": "Here is a text in English:",
    "de": "Hier steht ein Text auf Deutsch:",
    "fr": "Voici un texte en français :",
    "es": "Aquí hay un texto en español:",
    "zh": "下面是一段中文：",  # noqa: RUF001
    "ja": "以下は日本語の文章です：",  # noqa: RUF001
    "vi": "Sau đây là một đoạn văn bằng tiếng Việt:",
    "id": "Berikut ini adalah teks dalam bahasa Indonesia:",
    "ru": "Вот текст на русском языке:",
    "ar": "إليكم نصًا باللغة العربية:",
    "hi": "यह हिन्दी में लिखा एक पाठ है:",
    "pt": "Aqui está um texto em português:",
    "ko": "다음은 한국어로 쓴 글입니다:",
    "th": "ต่อไปนี้เป็นข้อความภาษาไทย:",
    "sw": "Haya ni maandishi kwa Kiswahili:",
    "ur": "یہ اردو میں ایک متن ہے:",
    "tr": "İşte Türkçe bir metin:",
    "it": "Ecco un testo in italiano:",
    "bn": "এখানে বাংলায় একটি লেখা আছে:",
    "te": "ఇది తెలుగులో ఒక వచనం:",
    "el": "Ακολουθεί ένα κείμενο στα ελληνικά:",
    "bg": "Ето един текст на български език:",
}


def naming_prompt(code: str, words: Literal["own", "english"] = "own") -> str:
    """A line that announces text in the language; it also suits models without instruction tuning.

    "own": in that language, which demonstrates it as well as naming it. "english": in English, for
    any language.

    >>> print(interp.text.naming_prompt("de"))
    Hier steht ein Text auf Deutsch:
    >>> print(interp.text.naming_prompt("sv", words="english"))
    Here is a text in Swedish:
    """
    known = language(code)
    if words == "english":
        return f"Here is a text in {known.name}:\n"
    if words != "own":
        raise ValueError(f"words is own or english, not {words!r}.")
    if known.code not in OPENINGS:
        raise ValueError(
            f"There is no naming prompt in {known.name}, only in {', '.join(OPENINGS)}; use "
            'words="english", or write one.'
        )
    return OPENINGS[known.code] + "\n"


_ANSWER_IN = {
    "en": "Answer in English.",
    "de": "Antworte auf Deutsch.",
    "fr": "Réponds en français.",
    "es": "Responde en español.",
    "zh": "请用中文回答。",
    "ja": "日本語で答えてください。",
    "ru": "Ответь на русском языке.",
    "ar": "أجب باللغة العربية.",
    "hi": "हिन्दी में उत्तर दीजिए।",
    "vi": "Hãy trả lời bằng tiếng Việt.",
    "sw": "Jibu kwa Kiswahili.",
    "ko": "한국어로 대답해 주세요.",
}


def answering_prompt(question: str, label: str) -> str | None:
    """The question and a request to answer in the language, in that language if it is known here.

    In other languages the request is in English; None: the label names no language.
    """
    known = language_of(label)
    if known is None:
        return None
    return f"{question}\n{_ANSWER_IN.get(known.code, f'Answer in {known.name}.')}"
