"""Penn Treebank tokenizer of the official caption metrics, in Python.

COCO's CIDEr, BLEU and ROUGE are defined on the tokens of Stanford CoreNLP 3.4.1 (`PTBTokenizer
-preserveLines -lowerCase`) without 17 punctuation tokens. This lexer needs no Java; its rules were
found by comparing outputs. At each position, the rule that matches the most characters gives the
token; the first of equals.

    tokenize(["The dog's bowl (red) isn't full..."]) == [
        ["the", "dog", "'s", "bowl", "-lrb-", "red", "-rrb-", "is", "n't", "full"]]
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

# The official list. It is compared with lowercase tokens, so brackets (-LRB- ..) are not removed.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--")
    + ("...", ";")
)

# Abbreviations that keep their period: before a name, anywhere, and before a number.
_TITLES = """
    adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft
    gen gov govs hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc
    ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt treas vs wm
"""
_ANYWHERE = """
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc
    ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb
    nev nov oct okla penn plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu
    thurs tue tues univ va vt wed wis wisc wyo
"""
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
_BEFORE_A_NUMBER = "art ca fig figs no nos op pp prop"
# A letter and a period are an initial, unless markup or one of these words follows, which begin
# sentences.
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Now Once One Other Our She Since So Some Such That The Their Then There These They This We
    What When While Yet You
"""


def _any(words: str) -> str:
    return "|".join(words.split())


def _characters(category: str) -> str:
    """Returns the inside of a character class: all characters of some Unicode categories.

    Only the first plane counts: the original reads UTF-16 and has no tokens of other planes.

    Args:
        category: The beginning of the names of the categories.
    """
    codes = [
        code for code in range(0x10000) if unicodedata.category(chr(code)).startswith(category)
    ]
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if after != code + 1]
    return "".join(f"\\u{a:04x}-\\u{b:04x}" for a, b in zip(starts, ends, strict=True))


# A soft hyphen counts as a letter and is removed from the token afterwards.
_SOFT_HYPHEN = "\xad"
_PLAIN_LETTERS = (
    _characters("L") + _characters("M").replace("\\ufe00-\\ufe0f", "") + r"\u02c2-\u02ff"
)
_LETTERS = _PLAIN_LETTERS + r"\xad"
_DIGITS = _characters("Nd")
# A vowel with an accent may be an HTML entity.
_ACCENTED = r"&[aeiouAEIOU](?:acute|grave|uml);"
_LETTER = f"(?:[{_LETTERS}]|{_ACCENTED})"
_ALNUM = f"(?:[{_LETTERS}{_DIGITS}]|{_ACCENTED})"
_END = f"(?![{_PLAIN_LETTERS}{_DIGITS}])"
_APOSTROPHE = r"['\u2019\x92]"
# Characters that count as an apostrophe inside a word.
_MARK = r"['`\u2018\u2019\u201b\x91\x92]"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_CLITIC = rf"{_APOSTROPHE}(?:[msdMSD]|re|ve|ll|RE|VE|LL|Re|Ve|Ll)"
_NUMBER = r"(?:\d+(?:(?:[.,][-+]?|[:\xad])\d+)+|\d*(?:[.:,\xad]\d+)+|\d+)"
_PLAIN_LETTER = f"[{_PLAIN_LETTERS}]"
_PLAIN_ALNUM = f"[{_characters('L')}{_DIGITS}]"
_PART = rf"(?:[dloDLO]{_MARK}(?={_PLAIN_ALNUM}{{2}}))?{_PLAIN_ALNUM}+"
_THING = rf"{_PART}(?:[-_\u2010\u2011]{_PART})*"
_AMPERSANDS = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
# Before these, a period does not end a sentence and stays with its word.
_IN_SENTENCE = r"[,;:\u3001]"
_AT = r"[^\s<>\"|(){}\xa0]"
_NAME = r"[A-Za-z][A-Za-z0-9._:-]*"
_ATTRIBUTE = rf"(?: +{_NAME}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?)"
_TAG = rf"(?:</?{_NAME}{_ATTRIBUTE}*[ /]*>|<[!?][A-Za-z-][^<>\n]*>)"
_SLASH_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])*\."
# Words with an apostrophe that are one token.
_ELIDED = """
    o'clock ma'am c'mon e'er ne'er o'er s'mores li'l nat'l cap'n ev'ry ol' 'n
    'cause 'till 'til d'ye
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
_ENTITIES = {
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"},
    **{"&nbsp;": "", "&mdash;": "--", "&ndash;": "--"},
}
_QUOTES = {
    **dict.fromkeys("`\u2018\u201b\u2039\x91", "`"),
    **dict.fromkeys("\u2019\u203a\x92", "'"),
    **dict.fromkeys("\u201c\u00ab\x93", "``"),
    **dict.fromkeys("\u201d\u00bb\x94", "''"),
}


def _as_is(text: str) -> str:
    """Keeps a token as it is, with its soft hyphens."""
    return text


def _straight(text: str) -> str:
    return "".join(_QUOTES.get(mark, mark) for mark in text)


def _without_soft_hyphens(text: str) -> str:
    """Removes soft hyphens; a token of nothing else becomes a hyphen."""
    return text.replace(_SOFT_HYPHEN, "") or "-" if _SOFT_HYPHEN in text else text


def _one_token(text: str) -> str:
    """Replaces spaces inside a token by no-break spaces, and parentheses by their tokens."""
    for bracket in "()":
        text = text.replace(bracket, _BRACKETS[bracket])
    return text.replace(" ", "\xa0")


def _quotes(text: str) -> str:
    return "".join(_QUOTES[quote] for quote in text)


_ABBREVIATION = (
    rf"(?:(?i:{_any(_ANYWHERE)}|ph\.d)|{_any(_CAPITALISED.title())}|{_any(_CAPITALISED.upper())})\."
)

# (pattern, function of the lowercase token). If a pattern has a group, the token is the group; the
# rest of the match is lookahead, but its length counts for the longest match.
_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    # Words that are written as one.
    (r"((?i:can))(?i:not)", str),
    (r"((?i:gon|wan))(?i:na)", str),
    (r"((?i:got))(?i:ta)", str),
    (r"((?i:lem|gim))(?i:me)", str),
    (r"('(?i:t))(?i:is|was)", str),
    (rf"({_WORD}){_CLITIC}", str),
    (rf"([A-Za-z\xad]+?)(?i:n){_MARK}(?i:t)", str),
    (rf"(?i:n){_MARK}(?i:t){_END}", _straight),
    (rf"({_CLITIC})(?:[^A-Za-z]|\Z)", _straight),
    (_WORD, str),
    # The text after the group counts as matched, so "Va.n" is two tokens and "Va.ny" is one.
    (rf"({_ABBREVIATION})[\s\S]{{2}}", str),
    # Markup, addresses and user names.
    (_TAG, _one_token),
    (f"(?i:{_any(' '.join(_ENTITIES))})", _ENTITIES.__getitem__),
    (r"&#\d+;", _as_is),
    (r"(?i:https?)://[^\s<>\"|(){}]+[^\s<>\"|.!?(){},-]", _as_is),
    (
        r"(?:(?i:www)\.(?:[^\s<>\"|.!?(){},]+\.)+[A-Za-z]{2,4}|(?:[^\s\"`'|!(){}$,-_]+\.)+(?i:com|net|org|edu))"
        r"(?:/[^\s<>\"|()]+[^\s<>\"|.!?(){},-])?",
        _as_is,
    ),
    (rf"<?[A-Za-z0-9]{_AT}*@(?:{_AT[:-1]}.]+\.)*{_AT[:-1]}.]+>?", _as_is),
    (rf"@[A-Za-z_][A-Za-z_0-9]*|#{_LETTER}+", _as_is),
    # Numbers.
    (rf"[-+]?{_NUMBER}", str),
    (rf"\d+(?:[.,]\d+)*{_ALNUM}*(?:-{_ALNUM}+)+|\d+\.[xX]{_END}", str),
    (r"(?:\d{1,4}[- \xa0])?\d{1,4}[/\u2044]\d{1,4}", _one_token),
    (_any(" ".join(_FRACTIONS)), _FRACTIONS.__getitem__),
    (
        r"(?:\(\d{2,3}\) ?|(?:\+?\d{2,4}[- ]?)?\d{2,4}[-/ ])\d{3,4}[-/ ]?\d{3,5}",
        _one_token,
    ),
    (rf"{_APOSTROPHE}(?:[2-9]0[sS]|\d\d(?=\s|\Z))", str),
    # Words of several parts.
    (_THING, str),
    (r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9\xad]+))+", str),
    (rf"({_WORD}\.){_IN_SENTENCE}", str),
    (rf"({_THING}\.){_IN_SENTENCE}", str),
    (rf"({_AMPERSANDS}\.){_IN_SENTENCE}", lambda text: text.replace("&amp;", "&")),
    (r"(?i:anti|pro)-", str),
    (rf"{_INITIALS}(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|{_ALNUM}+))*", str),
    (rf"{_ALNUM}+-(?:[A-Za-z]\.){{2,}}", str),
    (rf"{_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}}", str),
    (_AMPERSANDS, lambda text: text.replace("&amp;", "&")),
    (rf"[A-HJ-XZn]{_MARK}{_PLAIN_LETTER}{{2,}}", str),
    (rf"(?i:{_any(_ELIDED)})", str),
    (rf"{_PLAIN_LETTER}+[aeiouyAEIOUY]{_MARK}[aeiouA-Z]{_PLAIN_LETTER}*", str),
    (rf"(?i:{_APOSTROPHE}(?:em|n{_APOSTROPHE}?)|[dlj]{_APOSTROPHE}|c{_APOSTROPHE}est)", str),
    (rf"([yY]{_APOSTROPHE}){_LETTER}", str),
    # A quote that opens.
    (r"(')[A-Za-z][^ \t\n\xa0]", lambda _: "`"),
    (_CLITIC, _straight),
    (r"[Cc]\+\+|[CcFf]#", str),
    # Abbreviations.
    (rf"(?i:{_any(_TITLES)})\.", str),
    (_ABBREVIATION, str),
    (rf"((?i:{_any(_BEFORE_A_NUMBER)})\.)\s?\d", str),
    (rf"([A-Za-z])\.\s+(?:(?:{_any(_STARTERS + _STARTERS.upper())}|M[rsRS]\.)\s|{_TAG})", str),
    # Emoticons.
    (r"[<>]?[:;=][-'*o]?[()@\[\]\\{|dpDOP](?![A-Za-z0-9])", _one_token),
    (r"[-^=~<>']_[-^=~<>'x]", str),
    (r"\([-^x=~<>'][_.]?[-^x=~<>']\)", _one_token),
    # Everything else. Characters that no rule matches are dropped.
    (r"\.\.\.+|\u2026|\x85", lambda _: "..."),
    (r"-{5,}", str),
    (r"-{2,4}|[\u2013-\u2015\x96\x97]", lambda _: "--"),
    (r"[()\[\]{}]", _BRACKETS.__getitem__),
    # Brackets that are already spelled as tokens.
    (r"-(?i:[lr][rcs]b)-", str),
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
    """Returns all tokens of each text, with punctuation.

    As in the original, the texts are lines of one file: if a line ends with an initial, the
    beginning of the next line decides about its period.
    """
    joined = "\n".join(_SPACE.sub(" ", text) for text in texts)
    lines: list[list[str]] = [[]] if texts else []
    place = 0
    while place < len(joined):
        # A fast path for plain words, where no rule matches more.
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
            token = change(longest[group].lower())
            if token:
                lines[-1].append(token if change is _as_is else _without_soft_hyphens(token))
            place = longest.end(group)
            continue
        if joined[place] == "\n":
            lines.append([])
        place += 1
    return lines


def tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Returns the tokens of captions that metrics count: lowercase, without punctuation."""
    return [[token for token in line if token not in PUNCTUATION] for line in ptb_tokens(texts)]
