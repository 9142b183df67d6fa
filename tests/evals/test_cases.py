"""The HTML page of the best and the worst answers."""

import base64
import html.parser
import io
import re

import numpy as np
import PIL.Image
import pytest

from mm1_jax.evals.cases import Case, best_and_worst, cases_page


def case(answer: str = "a cat", quality: float = 1.0, level: int | None = 120) -> Case:
    image = None if level is None else np.full((4, 6, 3), level, np.uint8)
    return Case(image, "what is it?", ("a dog", "dog"), answer, quality, "k7")


def test_the_best_and_the_worst_are_chosen_without_repeats():
    quality = np.array([0.2, np.nan, 0.9, 0.1, 0.5])
    assert best_and_worst(quality, [*"abcde"], 2) == ([2, 4], [3, 0])
    best, worst = best_and_worst(quality, [*"abcde"], 9)
    assert sorted(best + worst) == [0, 2, 3, 4] and best[0] == 2 and worst[0] == 3
    assert best_and_worst(np.array([np.nan]), ["a"], 3) == ([], [])
    assert best_and_worst(np.array([1.0]), ["a"], 3) == ([0], [])


def test_ties_are_broken_by_keys_and_not_by_order():
    keys = [str(i) for i in range(50)]
    best, worst = best_and_worst(np.ones(50), keys, 5)
    assert best_and_worst(np.ones(50), keys, 5) == (best, worst)
    assert best != [*range(5)] and not {*best} & {*worst}
    backwards = keys[::-1]
    again, _ = best_and_worst(np.ones(50), backwards, 5)
    assert [backwards[i] for i in again] == [keys[i] for i in best]


def test_the_page_embeds_its_pictures_and_needs_no_network():
    page = cases_page("gqa, 4 shots", [case()], [case("a hat", 0.0, level=7), case(level=None)])
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    levels = [
        int(np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))[0, 0, 0])
        for data in sources
    ]
    assert levels == pytest.approx([120, 7], abs=2)
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "http://" not in page
    for text in ("what is it?", "a hat", "a dog\ndog", "gqa, 4 shots", "default-src 'none'"):
        assert text in page


def test_answers_are_escaped_as_text():
    said = "<script>alert(1)</script><img src=x onerror='y'>&\"quotes\""

    class Tags(html.parser.HTMLParser):
        names: list[str] = []
        texts: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.names.append(tag)

        def handle_data(self, data):
            self.texts.append(data)

    tags = Tags()
    tags.feed(cases_page("<b>", [case(said, level=None)], []))
    assert "script" not in tags.names and "img" not in tags.names and "b" not in tags.names
    assert said in tags.texts
