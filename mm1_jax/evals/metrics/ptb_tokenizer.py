"""The tokens of the Penn Treebank, as the official caption metrics see them.

CIDEr, BLEU and ROUGE of COCO are defined on what Stanford CoreNLP 3.4.1 makes of a caption
(`PTBTokenizer -preserveLines -lowerCase`), less 17 punctuation tokens. This is a lexer in Python
with its observable behaviour, found by comparing outputs, so that no Java is needed: at every place
each rule is tried, the one that matches most characters gives the token, and of equals the first.

    tokenize(["The dog's bowl (red) isn't full..."]) == [
        ["the", "dog", "'s", "bowl", "-lrb-", "red", "-rrb-", "is", "n't", "full"]]
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

# The official list, which is compared with lower-cased tokens: brackets therefore stay.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--")
    + ("...", ";")
)

# Abbreviations that keep their full stop, by where they do.
_ANYWHERE = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif
    capt cf cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc
    ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky
    lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl
    neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep
    reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas
    tue tues univ va vs vt wed wis wisc wm wyo
"""
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
_BEFORE_A_NUMBER = "art ca fig figs no nos op pp prop"
# A letter and a full stop are an initial, unless one of these follows, which begin sentences, or
# markup.
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Now Once One Other Our She Since So Some Such That The Their Then There These They This We
    What When While Yet You
"""


def _any(words: str) -> str:
    return "|".join(words.split())


def _characters(category: str) -> str:
    """The inside of a character class: the categories of Unicode whose name starts so.

    Of the first plane, since the original reads UTF-16, and nothing of the others is a token.
    """
    codes = [
        code for code in range(0x10000) if unicodedata.category(chr(code)).startswith(category)
    ]
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if after != code + 1]
    return "".join(f"\\u{a:04x}-\\u{b:04x}" for a, b in zip(starts, ends, strict=True))


_LETTERS = _characters("L") + _characters("M").replace("\\ufe00-\\ufe0f", "") + r"\u02c2-\u02ff"
_DIGITS = _characters("Nd")
_LETTER = f"[{_LETTERS}]"
_ALNUM = f"[{_LETTERS}{_DIGITS}]"
_END = f"(?!{_ALNUM})"
_APOSTROPHE = r"['\u2019\x92]"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_CLITIC = rf"{_APOSTROPHE}(?:[msdMSD]|re|ve|ll|RE|VE|LL|Re|Ve|Ll){_END}"
_NUMBER = r"(?:\d+(?:(?:[.,][-+]?|:)\d+)+|\d*(?:[.:,]\d+)+|\d+)"
_PLAIN_ALNUM = f"[{_characters('L')}{_DIGITS}]"
_PART = rf"(?:[dloDLO]{_APOSTROPHE}(?={_ALNUM}{{2}}))?{_PLAIN_ALNUM}+"
_TAG = r"(?:</?[A-Za-z][A-Za-z0-9._:-]*(?: +[A-Za-z][^<>\n]*)?[ /]*>|<[!?][A-Za-z-][^<>\n]*>)"
_SLASH_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])*\."
# Written with an apostrophe, and one token.
_ELIDED = """
    o'clock ma'am c'mon e'er ne'er o'er s'mores li'l nat'l cap'n ev'ry ol' 'n
    'cause 'til 'till more'n d'ye
""".replace("'", _APOSTROPHE)
_FRACTIONS = {
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
}
_BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}
_CURRENCIES = {"\u20ac": "$", "\u00a4": "$", "\u0080": "$", "\u00a3": "#", "\u00a2": "cents"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"}
_QUOTES = {
    **dict.fromkeys("\u2018\u201b\u2039\x91", "`"),
    **dict.fromkeys("\u2019\u203a\x92", "'"),
    **dict.fromkeys("\u201c\u00ab\x93", "``"),
    **dict.fromkeys("\u201d\u00bb\x94", "''"),
}


def _straight(text: str) -> str:
    return text.replace("\u2019", "'").replace("\x92", "'")


def _one_token(text: str) -> str:
    """A space inside of a token is a no-break space."""
    for bracket in "()":
        text = text.replace(bracket, _BRACKETS[bracket])
    return text.replace(" ", "\xa0")


def _quotes(text: str) -> str:
    return "".join(_QUOTES[quote] for quote in text)


# (what is matched, what becomes of it once it is lower-cased). Where there is a group, the token is
# the group, and what follows it is only looked at, but counts as matched.
_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    # Words that are written as one.
    (r"((?i:can))(?i:not)", str),
    (r"((?i:gon|wan))(?i:na)", str),
    (r"((?i:got))(?i:ta)", str),
    (r"((?i:lem|gim))(?i:me)", str),
    (rf"({_APOSTROPHE}(?i:t))(?i:is|was)", _straight),
    (rf"({_WORD}){_CLITIC}", str),
    (rf"({_LETTER}+?)(?i:n){_APOSTROPHE}(?i:t){_END}", str),
    (rf"(?i:n){_APOSTROPHE}(?i:t){_END}", _straight),
    (_CLITIC, _straight),
    (_WORD, str),
    # Markup, addresses and names of users.
    (_TAG, _one_token),
    (r"<[A-Za-z0-9][^\s<>]*@[^\s<>]+>", str),
    (_any(" ".join(_ENTITIES)), _ENTITIES.__getitem__),
    (r"&#?[A-Za-z0-9]+;", str),
    (r"https?://[^\s<>\"|(){}]+[^\s<>\"|.!?(){},-]", str),
    (
        r"(?:www\.(?:[^\s<>\"|.!?(){},]+\.)+[A-Za-z]{2,4}|(?:[a-z]+\.)+(?i:com|net|org|edu))"
        r"(?:/[^\s<>\"|()]+[^\s<>\"|.!?(){},-])?",
        str,
    ),
    (r"[A-Za-z0-9][^\s<>\"|():@]*@[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*", str),
    (r"@[A-Za-z_][A-Za-z_0-9]*|#[A-Za-z]+", str),
    # Numbers.
    (rf"[-+]?{_NUMBER}", str),
    (rf"\d+(?:[.,]\d+)*{_ALNUM}*(?:-{_ALNUM}+)+|\d+\.[xX]", str),
    (r"(?:\d{1,4}[- \xa0])?\d{1,4}[/\u2044]\d{1,4}", _one_token),
    (_any(" ".join(_FRACTIONS)), _FRACTIONS.__getitem__),
    (
        r"(?:\(\d{2,3}\) ?|(?:\+?\d{2,4}[- ]?)?\d{2,4}[-/ ])\d{3,4}[-/ ]?\d{3,5}",
        _one_token,
    ),
    (rf"{_APOSTROPHE}\d\d(?:s{_END}|(?=\s|\Z))", str),
    # Words of several parts.
    (rf"{_PART}(?:[-_]{_PART})*", str),
    (rf"{_WORD}(?:-{_ALNUM}+)+", str),
    (r"(?i:anti|pro)-", str),
    (rf"{_INITIALS}(?:-(?:{_INITIALS}|{_ALNUM}+))*", str),
    (rf"{_ALNUM}+-(?:[A-Za-z]\.){{2,}}", str),
    (rf"{_SLASH_PART}(?:/{_SLASH_PART}){{1,2}}", str),
    (r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", lambda text: text.replace("&amp;", "&")),
    (rf"[A-HJ-XZn]{_APOSTROPHE}[A-Za-z]{{2}}{_ALNUM}*", str),
    (rf"(?i:{_any(_ELIDED)}){_END}", str),
    (rf"[A-Za-z]+[aeiouy]{_APOSTROPHE}[aeiou][A-Za-z]*", str),
    (rf"{_APOSTROPHE}(?:em|n{_APOSTROPHE})", str),
    (rf"([yjlYJL]{_APOSTROPHE}){_LETTER}", str),
    (r"[Cc](?:\+\+|#)", str),
    # Abbreviations.
    (rf"(?i:{_any(_ANYWHERE)})\.", str),
    (rf"(?:{_any(_CAPITALISED.title())}|{_any(_CAPITALISED.upper())})\.", str),
    (rf"((?i:{_any(_BEFORE_A_NUMBER)})\.)\s?\d", str),
    (rf"([A-Za-z])\.\s+(?:(?:{_any(_STARTERS)}|M[rs]\.)\s|{_TAG})", str),
    (r"(?i:ph\.d)\.", str),
    # Faces.
    (r"[<>]?[:;=][-'*o]?[()@\[\]\\{|dpDOP](?![A-Za-z0-9])", _one_token),
    (r"[-^=~<>']_[-^=~<>'x]", str),
    (r"\([-^x=~<>'][_.]?[-^x=~<>']\)", _one_token),
    # Everything else; the rest is no token at all.
    (r"\.\.\.+|\u2026|\x85", lambda _: "..."),
    (r"-{5,}", str),
    (r"-{2,4}|[\u2013-\u2015\x96\x97]", lambda _: "--"),
    (r"[()\[\]{}]", _BRACKETS.__getitem__),
    (r"\"|''|``", lambda _: "''"),
    (r"['`]", str),
    (f"[{''.join(_QUOTES)}]{{1,2}}", _quotes),
    (r"[?!]+|#+|\*+|_+|@+|<<|>>|\\\*", str),
    (f"[{''.join(_CURRENCIES)}]", _CURRENCIES.__getitem__),
    (r"[A-Z]+\$", str),
    (
        r"[!-~\xa1-\xbf\xd7\xf7\u2016\u2017\u201a\u201e-\u2023\u2032-\u203d\u2040-\u2044\u2046\u2074-\u208e"
        r"\u20a6\u2103-\u214f\u2155-\u215f\u2160\u2190-\u2bff\u3001\u3003\u3004\u3014\u060c\u061f\uff03-\uff0f\uff1a-\uff20]",
        str,
    ),
)
_COMPILED = tuple((re.compile(pattern), change) for pattern, change in _RULES)
_SPLIT_WORDS = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])
_PLAIN = re.compile(r"[A-Za-z]+(?=[ \n]|\Z)")
_SPACE = re.compile(r"\s")


def ptb_tokens(texts: Sequence[str]) -> list[list[str]]:
    """All tokens of some texts, with punctuation.

    The texts are lines of one file to the original, and where a line ends with an initial, its full
    stop depends on how the next one begins. So it is here.
    """
    joined = "\n".join(_SPACE.sub(" ", text) for text in texts)
    lines: list[list[str]] = [[]] if texts else []
    place = 0
    while place < len(joined):
        # What most of a caption is: no rule matches more.
        if (found := _PLAIN.match(joined, place)) and found[0].lower() not in _SPLIT_WORDS:
            lines[-1].append(found[0].lower())
            place = found.end()
            continue
        longest, change = None, str
        for pattern, rule_change in _COMPILED:
            found = pattern.match(joined, place)
            if found and (longest is None or found.end() > longest.end()):
                longest, change = found, rule_change
        if longest is not None:
            group = longest.re.groups
            lines[-1].append(change(longest[group].lower()))
            place = longest.end(group)
            continue
        if joined[place] == "\n":
            lines.append([])
        place += 1
    return lines


def tokenize(texts: Sequence[str]) -> list[list[str]]:
    """The tokens of captions that count: lower case, without punctuation."""
    return [[token for token in line if token not in PUNCTUATION] for line in ptb_tokens(texts)]
