import time

import pytest

from mm1_jax.data.readers.markup import ImageReference, html_segments, markdown_segments
from mm1_jax.data.record_files import BadRecord


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("# One\n\ntwo", ["# One\n\ntwo"]),
        ("a ![alt](b.png) c", ["a", ImageReference("b.png"), "c"]),
        ('![](b.png "title")![x]( c.png )', [ImageReference("b.png"), ImageReference("c.png")]),
        ("![see [1]](a_(b).png)", [ImageReference("a_(b).png")]),
        ("![x](<a b.png>)", [ImageReference("a b.png")]),
        ("![x]()", [ImageReference("")]),
        ("[![x](b.png)](http://x)", ["[", ImageReference("b.png"), "](http://x)"]),
        ("![a][one] b\n\n[ONE]: a.png", [ImageReference("a.png"), "b\n\n[ONE]: a.png"]),
        ("![One]\n[one]: <a.png>", [ImageReference("a.png"), "[one]: <a.png>"]),
        ("![a][lost] ![lost]", ["![a][lost] ![lost]"]),
        ("not `![x](b.png)` here", ["not `![x](b.png)` here"]),
        ("not \\![x](b.png)", ["not \\![x](b.png)"]),
        ("```\n![x](b.png)\n```\n![x](c.png)", ["```\n![x](b.png)\n```", ImageReference("c.png")]),
        ("~~~~\n~~~\n![x](b.png)", ["~~~~\n~~~\n![x](b.png)"]),
        ('a <IMG alt=x SRC="b.png"/> c', ["a", ImageReference("b.png"), "c"]),
        ("a <images> b", ["a <images> b"]),
        ("a [link](b.png) c", ["a [link](b.png) c"]),
        ("a<!-- more -->b <!-- ![x](b.png) `c -->![x](d.png)", ["ab", ImageReference("d.png")]),
        ("a `<!-- b -->` c", ["a `<!-- b -->` c"]),
        ("```\n<!-- a -->\n```", ["```\n<!-- a -->\n```"]),
        ("a <!-- b ![x](c.png) <!-- d", ["a <!-- b", ImageReference("c.png"), "<!-- d"]),
    ],
)  # fmt: skip
def test_markdown_is_split_at_its_pictures(text, parts):
    assert markdown_segments(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a &amp; b &lt;c&gt; &#233;", ["a & b <c> \u00e9"]),
        ("<p>one\n  two</p><p>three", ["one two\n\nthree"]),
        ("a<br>b<BR/>c", ["a\nb\nc"]),
        ("<ul><li>a<li>b</ul>", ["a\nb"]),
        ("<b>bo</b>ld <i>x</i>", ["bold x"]),
        ("<tr><td>a</td><td>b</td></tr><tr><td>c", ["a b\nc"]),
        ("<pre>a\n   b  c\n</pre>d   e", ["a\n   b  c\n\nd e"]),
        ("a<img src=b.png>c", ["a", ImageReference("b.png"), "c"]),
        ("a<IMG ALT='>' SRC = 'b&amp;c.png' />", ["a", ImageReference("b&c.png")]),
        ('<img src="data:x" data-src="b.png">', [ImageReference("b.png")]),
        ("<img>", [ImageReference("")]),
        ("<img src=a src=b", [ImageReference("a")]),
        ("<!-- <img src=a> -->b<!-- c", ["b"]),
        ("<!DOCTYPE html><?xml ?></ ?>a", ["a"]),
        ("<script>if (a < b) '<img src=c>'</script >d", ["d"]),
        ("<STYLE>a</Style><title>b</title><noscript><img src=c></noscript>d", ["d"]),
        ("<script>never closed <img src=a>", []),
        ("1 < 2 <3 <", ["1 < 2 <3 <"]),
        ("</pre></pre>a  b", ["a b"]),
        ("a\u00a0b", ["a b"]),
    ],
)
def test_html_text_is_what_a_browser_shows(text, parts):
    assert html_segments(text) == parts


def test_a_character_of_thousands_of_digits_is_a_bad_record():
    with pytest.raises(BadRecord, match="not HTML"):
        html_segments("&#" + "9" * 5000 + ";")


# An unclosed construct extends to the end; the next one must not scan for its end again.
OPEN = [
    "<!--",
    '<a b="',
    "<a b='",
    "<script>",
    "</",
    "<![CDATA[",
    "<?",
    "<a",
    "![](<",
    "![",
    "[a]: <",
]
MANY = [
    *(
        "<",
        "<a ",
        "<img src=",
        "&",
        "&#",
        "&#x",
        "<pre>",
        "<p>",
        " ",
        "\n",
        "\t ",
        "<a b = ",
        "<a/",
    ),
    *(
        "![a]",
        "![](",
        "![](a ",
        '![](a "',
        "![][",
        "`",
        "```\n",
        "~~~\n",
        "\\",
        "![a](b(",
        "(",
        "[",
    ),
    *("[a]:\n", "<img ", "<img <", "![](a()", "![[a]", "![](( ", "a ", "'", '"', "<a b='' c=\""),
]


@pytest.mark.parametrize("parts", [html_segments, markdown_segments])
@pytest.mark.parametrize(("seeds", "size"), [(OPEN, 400_000), (MANY, 20_000)])
def test_time_is_linear_in_the_size(parts, seeds, size):
    """In quadratic time, a single one of these texts would exceed the limit for all of them."""
    start = time.process_time()
    for seed in seeds:
        for text in (seed * (size // len(seed)), seed + "x" * size, "x" * size + seed):
            parts(text)
    assert time.process_time() - start < 20
