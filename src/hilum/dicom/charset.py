"""Takes the raw bytes of a text value and Specific Character Set (0008,0005); gives a str. Never raises and
never warns: bytes that mean nothing in their character set become U+FFFD, and an unknown set is taken
for the default one.

PS3.5 6.1.2.5, Code Extension Techniques, and PS3.3 C.12.1.1.2, Specific Character Set. What the Standard
leaves open (misspelt terms, undecodable bytes) goes as pydicom has it, so that one file reads alike in both.
"""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

_DEFAULT = "iso8859"

# PS3.5 6.1.2.3, Encoding of Character Repertoires: only these VRs are affected by (0008,0005).
_AFFECTED = frozenset(("SH", "LO", "UC", "ST", "LT", "UT", "PN"))

# PS3.3 Tables C.12-2 to C.12-5: defined term to Python codec. Beyond the Standard: the older spellings of
# the Chinese sets, and Latin-1 where ISO-IR 6 is stated but bytes above 7F occur.
_CODECS = {
    "": _DEFAULT,
    "ISO_IR 6": _DEFAULT,
    "ISO_IR 13": "shift_jis",  # JIS X 0201 is its single-byte part
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 126": "iso_ir_126",  # Greek
    "ISO_IR 127": "iso_ir_127",  # Arabic
    "ISO_IR 138": "iso_ir_138",  # Hebrew
    "ISO_IR 144": "iso_ir_144",  # Cyrillic
    "ISO_IR 148": "iso_ir_148",  # Latin alphabet no. 5, Turkish
    "ISO_IR 166": "iso_ir_166",  # Thai
    "ISO_IR 203": "iso8859_15",  # Latin alphabet no. 9
    "ISO 2022 IR 6": _DEFAULT,
    "ISO 2022 IR 13": "shift_jis",
    "ISO 2022 IR 58": "iso_ir_58",  # Simplified Chinese, GB 2312
    "ISO 2022 IR 87": "iso2022_jp",  # JIS X 0208
    "ISO 2022 IR 100": "latin_1",
    "ISO 2022 IR 101": "iso8859_2",
    "ISO 2022 IR 109": "iso8859_3",
    "ISO 2022 IR 110": "iso8859_4",
    "ISO 2022 IR 126": "iso_ir_126",
    "ISO 2022 IR 127": "iso_ir_127",
    "ISO 2022 IR 138": "iso_ir_138",
    "ISO 2022 IR 144": "iso_ir_144",
    "ISO 2022 IR 148": "iso_ir_148",
    "ISO 2022 IR 149": "euc_kr",  # KS X 1001
    "ISO 2022 IR 159": "iso2022_jp_2",  # JIS X 0212
    "ISO 2022 IR 166": "iso_ir_166",
    "ISO 2022 IR 203": "iso8859_15",
    "ISO_IR 192": "UTF8",
    "GB18030": "GB18030",
    "GBK": "GBK",
    "ISO 2022 GBK": "GBK",
    "ISO 2022 58": "GB2312",
}

# PS3.5 6.1.2.5.4 d: sets that can't be combined with others.
_STAND_ALONE = frozenset(("ISO_IR 192", "GBK", "GB18030"))

# PS3.3 Tables C.12-3 and C.12-4: escape sequence to the codec it switches to.
_ESCAPES = {
    b"\x1b(B": _DEFAULT,  # ISO-IR 6, back to ASCII
    b"\x1b(J": "shift_jis",  # ISO-IR 14, the Latin half of JIS X 0201
    b"\x1b)I": "shift_jis",  # ISO-IR 13, its Katakana half
    b"\x1b-A": "latin_1",
    b"\x1b-B": "iso8859_2",
    b"\x1b-C": "iso8859_3",
    b"\x1b-D": "iso8859_4",
    b"\x1b-F": "iso_ir_126",
    b"\x1b-G": "iso_ir_127",
    b"\x1b-H": "iso_ir_138",
    b"\x1b-L": "iso_ir_144",
    b"\x1b-M": "iso_ir_148",
    b"\x1b-T": "iso_ir_166",
    b"\x1b-b": "iso8859_15",
    b"\x1b$B": "iso2022_jp",
    b"\x1b$(D": "iso2022_jp_2",
    b"\x1b$)A": "iso_ir_58",
    b"\x1b$)C": "euc_kr",
}
# These codecs want the escape sequence in their input, and take it out themselves.
_KEEP_ESCAPE = frozenset(("iso2022_jp", "iso2022_jp_2"))

# A value may state a Python codec, and some do ("utf-8", "windows-1252"). Not these: they are programs
# rather than character sets, warn on ordinary text, take time that grows with its square, or give half
# surrogates (UTF-7), which no UTF-8 answer can carry.
_REFUSED = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"))

# There are 24 terms in the Standard. A value with thousands would cost an import attempt for each.
_TERMS_MAX = 32

_FRAGMENT = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")
# PS3.5 6.1.2.5.3: what follows one of these is in the first character set again. The delimiters ^ = and \ are
# not listed, as in pydicom: after them writers state the character set anew.
_RESET = re.compile(rb"[\t\n\f\r]")
_ASCII = bytes(code for code in range(128) if code != 0x1B)


def decode_text(data: bytes, vr: str, character_sets: bytes | str) -> str:
    """Return one element's value as text, padding and backslashes still in it.

    Takes the whole value, because a byte 5C can be half of a character in Shift-JIS, GBK and GB18030: a
    value is split after it is decoded. `character_sets` is the raw value of (0008,0005) that holds for
    the element's data set or item, with its backslashes; b"" or "" where there is none. For VRs that
    (0008,0005) doesn't affect, bytes above 7F are Latin-1.
    """
    if vr not in _AFFECTED:
        return data.decode(_DEFAULT)
    if isinstance(character_sets, bytes):
        character_sets = character_sets.decode(_DEFAULT)
    sets, ascii_is_ascii = _codecs_of(character_sets)
    first = sets[0]
    if b"\x1b" not in data:
        if ascii_is_ascii and data.isascii():
            return data.decode("ascii")
        return data.decode(first, errors="replace")
    return "".join([_decode_fragment(fragment, sets) for fragment in _FRAGMENT.findall(data)])


def _decode_fragment(fragment: bytes, sets: tuple[str, ...]) -> str:
    """Decode bytes that have at most one escape sequence, and that at their begin."""
    first = sets[0]
    if fragment[0] != 0x1B:
        return fragment.decode(first, errors="replace")
    length = 4 if fragment.startswith((b"\x1b$(", b"\x1b$)")) else 3
    codec = _ESCAPES.get(fragment[:length])
    if codec is None or (codec not in sets and codec != _DEFAULT):
        # A switch to a set that (0008,0005) doesn't announce is none; the escape stays in the text.
        return fragment.decode(first, errors="replace")
    try:
        if codec in _KEEP_ESCAPE:
            return fragment.decode(codec)
        text = fragment[length:]
        reset = _RESET.search(text)
        end = reset.start() if reset else len(text)
        return text[:end].decode(codec) + text[end:].decode(first)
    except UnicodeError:
        return fragment.decode(first, errors="replace")


@lru_cache(maxsize=256)
def _codecs_of(character_sets: str) -> tuple[tuple[str, ...], bool]:
    """Return the codecs of a value of (0008,0005), and whether ASCII stays itself under the first.

    The last is false for UTF-16, EBCDIC and the like, which a value may name too.
    """
    terms = character_sets.rstrip(" \0").split("\\", _TERMS_MAX)[:_TERMS_MAX]
    if terms[0] in _STAND_ALONE:
        terms = terms[:1]
    sets = tuple(
        _codec_of(term) for index, term in enumerate(terms) if index == 0 or term not in _STAND_ALONE
    )
    return sets, _ASCII.decode(sets[0], errors="replace") == _ASCII.decode("ascii")


def _codec_of(term: str) -> str:
    """Return the Python codec for one term, the default one where it is not to be understood."""
    known = _CODECS.get(term)
    if known is not None:
        return known
    # The common misspellings: "ISO-IR 100", "ISO IR 100", "ISO 2022-IR 100", "ISO_2022_IR_100" ...
    if re.match("ISO[^_]IR", term):
        return _CODECS.get("ISO_IR" + term[6:], _DEFAULT)
    if re.match("ISO.2022.IR.(?<!ISO 2022 IR )", term):
        return _CODECS.get("ISO 2022 IR " + term[12:], _DEFAULT)
    try:
        if codecs.lookup(term).name in _REFUSED:
            return _DEFAULT
        b" ".decode(term, errors="replace")  # a LookupError for codecs that don't give text, such as hex
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return _DEFAULT
    return term
