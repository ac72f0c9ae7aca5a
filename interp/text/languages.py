"""The known languages: code, name, script, family and color, the same everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Language:
    """One language, as named in files, figures and tables."""

    code: str
    """ISO 639-1, such as `fr`."""

    name: str
    """English name."""

    endonym: str
    """Name in the language itself."""

    script: str
    """Usual script, in English: Latin, Cyrillic, Han, ..."""

    family: str
    """Language family; for Indo-European, which is so large, its branch (Germanic, ...)."""

    color: str
    """Hex, the same in every figure; readable on white, also in grayscale."""


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
"""Every known language by code, in the order of legends and tables."""

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


def language(code: str) -> Language:
    """The language with this code; for an unknown code, the error names the nearest ones."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    nearest = " or ".join(f"{near} ({LANGUAGES[near].name})" for near in _nearest(code))
    raise ValueError(
        f"{code!r} is not a known language code; did you mean {nearest}? "
        f"Known codes: {', '.join(LANGUAGES)}."
    )


def check_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """The codes as a tuple; refuses an empty list, unknown codes and repetitions."""
    if isinstance(codes, str):
        raise ValueError(
            f"Languages were given as the one string {codes!r}; give a list of codes, "
            "such as ['en', 'fr']."
        )
    if not codes:
        raise ValueError("No language was given; give at least one code, such as ['en', 'fr'].")
    for code in codes:
        language(code)
    repeated = sorted({code for code in codes if list(codes).count(code) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given more than once; name each language once.")
    return tuple(codes)


def _nearest(text: str) -> list[str]:
    """Codes that the text may mean, best first: at least one, at most three."""
    query = text.strip().casefold()
    base = query.replace("_", "-").split("-")[0]
    for exact in (query, base):
        if exact in LANGUAGES:
            return [exact]
        if exact in VARIANTS:
            return [VARIANTS[exact]]

    def similarity(row: Language) -> float:
        words = (row.code, row.name.casefold(), row.endonym.casefold())
        if len(query) > 2 and any(word.startswith(query) for word in words):
            return 1.0
        return max(SequenceMatcher(None, query, word).ratio() for word in words)

    scores = {row.code: similarity(row) for row in _ROWS}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)  # stable: ties in table order
    return [code for code in ranked[:3] if scores[code] >= 0.8 * scores[ranked[0]]]


_OPENINGS = {
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
    any known language.

    >>> print(interp.text.naming_prompt("de"))
    Hier steht ein Text auf Deutsch:
    >>> print(interp.text.naming_prompt("sv", words="english"))
    Here is a text in Swedish:
    """
    name = language(code).name
    if words == "english":
        return f"Here is a text in {name}:\n"
    if words != "own":
        raise ValueError(f"words is own or english, not {words!r}.")
    if code not in _OPENINGS:
        raise ValueError(
            f"There is no naming prompt in {name}, only in {', '.join(_OPENINGS)}; use "
            'words="english", or write one.'
        )
    return _OPENINGS[code] + "\n"
