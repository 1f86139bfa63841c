"""Feedback pages: marks, comments and messages; nothing hidden, nothing from the network, nothing that runs."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import nbformat
import pytest

from labkit.grading.book import Book
from labkit.grading.feedback import feedback
from labkit.grading.feedback_page import clean_html
from labkit.grading.late import set_due
from labkit.grading.outcome import CellOutcome
from labkit.grading.record import record
from labkit.grading.store import Store
from labkit.show.page import REMOTE

from .small_course import NAME, handed_in, make_course, mark_by_hand, outcome, submission
from .small_lab import small_lab
from .test_late import DUE

EVIL = """The <b>answer</b> is $x^2 < y$ and ⟦0⟧ and ⟦7⟧.

<script>alert(1)</script><img src="http://example.org/pixel.png" onerror="alert(2)">
<iframe src="//example.org"></iframe>
<style>@import url(http://example.org/a.css); body { display: none }</style><svg onload="alert(3)"></svg>
<a href="javascript:alert(4)">press</a> <a href="https://example.org/paper">paper</a>

![another's work](../bob/lab.html) ![a file](sketch.png)

$$\\text{</math><script>alert(5)</script>}$$ $\\href{javascript:alert(6)}{x}$ $\\text{<img src=//example.org/x>}$
"""


class Tags(HTMLParser):
    """Tags with their attributes, as a browser would find them."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of three students: one good, one who failed and prints, one hostile and late."""
    notebook = small_lab()
    notebook.cells[1].source += "\n\nThe formula is $\\bar{x} = \\frac{1}{n} \\sum x_i$. ![a square](square.svg)"
    # A visible test whose end is hidden, and a cell of the lab behind the hidden tests.
    notebook.cells[3].source += "\n### BEGIN HIDDEN TESTS\nassert mean([7]) == 7, 'one'\n### END HIDDEN TESTS"
    book = make_course(tmp_path_factory.mktemp("course"), notebook)
    (book.root / "source" / NAME / "square.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (book.root / "source" / NAME / "solutions.txt").write_text("the teacher's own")
    (book.root / "source" / NAME / "sketch.png").write_text("what nobody sees")
    lab = book.lab(NAME)
    store = Store(book.root, lab)
    set_due(book, NAME, DUE)
    failed = outcome(
        "bob",
        hidden=0.0,
        notes=["The test ex1-mean-test was <changed>."],
        ex1_mean=CellOutcome(stdout="debugging <b>", ran=True),
        added_3_1=CellOutcome(stdout="seen: [2, 2, 5]", ran=True),
    )
    failed.cells["ex1-mean-hidden"].stdout = "called with [2, 2, 5]"
    failed.cells["added-4-1"] = CellOutcome(stdout="noted earlier: [2, 2, 5]", ran=True)
    cases = {
        "ada": (submission("ada", "Ada King"), outcome("ada"), handed_in(lab)),
        "bob": (submission("bob"), failed, handed_in(lab, "print('x'); return 2")),
        "eve": (
            submission("eve", received="2026-12-02T12:00:00"),
            outcome("eve", test=0.0, hidden=0.0),
            handed_in(lab, text=EVIL, extra=[("markdown", EVIL), ("code", "1 # <hr>")]),
        ),
    }
    late = nbformat.v4.new_code_cell("print(noted)", id="added-4-1")
    cases["bob"][2].cells.insert(6, late)
    for who, found, handed in cases.values():
        record(book, who, found, handed)
        store.save(found)
    mark_by_hand(book, "ada", "q2-means", 1.5, "Well **seen**: $n$ counts. ![x](http://example.org/x.png)")
    paths = feedback(book, lab, store, list(cases)).written
    return {student: path.read_text(encoding="utf-8") for student, path in paths.items()}, book, lab, store


def test_marks_by_exercise_comments_and_what_waits(pages):
    ada, bob, eve = (text(pages[0][s]) for s in ("ada", "bob", "eve"))
    assert "4.5 of 5 points for Ada King (ada)" in ada and "The mean 3 3" in ada and "Means of means 1.5 2" in ada
    assert "Well seen : counts." in ada and "your teacher" not in ada and "handed in late" not in ada
    assert "1 of 5 points so far for bob" in bob and "The mean 1 3" in bob
    assert "Means of means waits for your teacher 2" in bob and "The marks are not final: Means of means waits" in bob
    assert "Your answer waits for your teacher (of 2)" in bob and "0.0 / 2" not in bob and "Score" not in bob
    assert "Test ex1-mean-hidden 0 of 2" in bob and "When it was handed in is not known, due 2026-12-01 18:00" in bob
    assert "what is printed after it is not" in bob
    assert "The test ex1-mean-test was <changed>." in bob and "the count is not always 2" in bob
    assert "debugging <b>" in bob and "return 2" in bob
    assert "0 of 5 points so far for eve" in eve and "the mean of 1 and 3 is 2" in eve


def test_lateness_is_a_line_of_the_table(pages, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    _, book, lab, store = pages
    mark_by_hand(book, "eve", "q2-means", 2.0)
    record(book, submission("eve", received="2026-12-02T12:00:00"), outcome("eve"), handed_in(lab, text="x"))
    page = text(feedback(book, lab, store, ["eve"]).written["eve"].read_text(encoding="utf-8"))
    assert "3.75 of 5 points for eve" in page and "Handed in 2026-12-02 12:00 UTC, due 2026-12-01 18:00 UTC." in page
    assert "handed in late: 1 day begun after the due date, 25 % of the points for each. −1.25" in page


def test_nothing_hidden_is_on_any_page(pages):
    for page in pages[0].values():
        for secret in ("HIDDEN TESTS", "BEGIN", "[7]", "'one'", "[2, 2, 5]", "secret", "noted earlier", "total / len"):
            assert secret not in text(page), secret
        assert "Hidden tests run when the lab is graded." in text(page)
    folder = pages[1].root / "feedback" / "ada" / NAME
    assert [path.name for path in folder.iterdir()] == ["lab.html"], "files beside the source stay there"


def test_pages_load_nothing_and_run_nothing(pages):
    for student, page in pages[0].items():
        assert not REMOTE.search(re.sub(r"(?s)@import.*?;", "", page)) and "what nobody sees" not in page
        assert "@import" not in "".join(re.findall(r"(?s)<style>.*?</style>", page)), "as text it imports nothing"
        assert "default-src 'none'" in page
        tags = Tags(page).found
        assert not {"script", "iframe", "svg", "link", "object", "form"} & {tag for tag, _ in tags}
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        sources = [a["src"] for _, a in tags if "src" in a]
        assert all(source.startswith("data:image/") for source in sources)
        # nbgrader's one picture of the lab's own statement
        assert len(sources) == 1, student
        links = [a["href"] for _, a in tags if "href" in a]
        assert all(link.startswith(("#", "https://example.org/paper")) for link in links)
    assert pages[0]["eve"].count("</body>") == 1 and len(pages[0]["ada"]) < 200_000


def test_formulas_are_mathml_and_cannot_carry_markup(pages):
    ada, eve = pages[0]["ada"], pages[0]["eve"]
    assert ada.count("<math") == 2 and "<mfrac" in ada, "the statement's and the comment's"
    assert "⟦7⟧" in eve and eve.count("<script") == 0
    clean = clean_html("a $x < y$ b\n\n<details><summary>Hint</summary>\n\n**bold**\n\n</details>", None)
    assert "<math" in clean and "<details>" in clean and "<strong>bold</strong>" in clean


def test_only_the_students_asked_for(pages):
    _, book, lab, store = pages
    path = book.root / "feedback" / "bob" / NAME / "lab.html"
    before = path.stat().st_mtime_ns
    assert list(feedback(Book(book.root), lab, store, ["ada"]).written) == ["ada"]
    assert path.stat().st_mtime_ns == before and feedback(book, lab, store, []).written == {}


def test_a_page_that_shows_a_secret_is_taken_away(pages, monkeypatch):
    _, book, lab, store = pages
    monkeypatch.setattr("labkit.grading.feedback.seen", lambda *_, **__: [stream("the count is not always 2")])
    assert list(feedback(book, lab, store, ["ada"]).written) == ["ada"], "a test's message is no secret"
    secret = 'assert mean([2, 2, 5]) == 3, "the count is not always 2"'
    monkeypatch.setattr("labkit.grading.feedback.seen", lambda *_, **__: [stream(secret)])
    pages = feedback(book, lab, store, ["ada", "bob"])
    assert pages.withheld == {"ada": secret, "bob": secret} and not pages.written
    assert not [s for s in ("ada", "bob") if (book.root / "feedback" / s / NAME / "lab.html").exists()]


def test_only_the_page_that_shows_a_secret_is_withheld(pages):
    _, book, lab, store = pages
    found = outcome("gus")
    secret = found.cells["ex1-mean-test"].shown = 'assert mean([2, 2, 5]) == 3, "the count is not always 2"'
    record(book, submission("gus"), found, handed_in(lab))
    store.save(found)
    done = feedback(book, lab, store, ["ada", "gus", "bob"])
    assert list(done.written) == ["ada", "bob"] and done.withheld == {"gus": secret}
    assert [(book.root / "feedback" / s / NAME / "lab.html").exists() for s in ("ada", "gus", "bob")] == [1, 0, 1]


def test_what_was_not_handed_in_is_said_once(pages):
    """In place of an error for each test; not where the answer stands in a cell of the student's own."""
    _, book, lab, store = pages

    def page(student, failed, **more):
        cells = {
            "ex1_mean_test": CellOutcome(0, 1, f"{failed} (in ex1-mean, line 3)", f"{failed} (in ex1-mean)", ran=True),
            "ex1_mean_hidden": CellOutcome(0, 2, failed, f"A hidden test: {failed}", ran=True),
        }
        found = outcome(student, **cells)
        record(book, submission(student), found, handed_in(lab, **more) if more else lab.stub())
        store.save(found)
        return text(feedback(book, lab, store, [student]).written[student].read_text(encoding="utf-8"))

    empty = page("hal", "NotImplementedError")
    assert "(in ex1-mean)" not in empty and "A hidden test:" not in empty and "No response." not in empty
    assert empty.count("Nothing was handed in for this") == 2, "the exercise and the question"
    assert "Means of means 0 2" in empty
    elsewhere = page("ian", "AssertionError: the mean is 2", answer="# YOUR CODE HERE\n    raise NotImplementedError()")
    assert elsewhere.count("Nothing was handed in") == 0 and elsewhere.count("AssertionError: the mean is 2") == 2
    own = page("joe", "NameError: name 'meen' is not defined", answer="return meen")
    assert own.count("Nothing was handed in") == 0 and own.count("'meen' is not defined") == 2


def test_a_student_who_writes_a_marker_gets_a_page(pages):
    _, book, lab, store = pages
    record(book, submission("fay"), outcome("fay"), handed_in(lab, "### BEGIN SOLUTION\n    return 2"))
    assert list(feedback(book, lab, store, ["fay"]).written) == ["fay"]


def stream(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


class Words(HTMLParser):
    """What a reader sees of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.words, self.inside = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.inside += [tag] if tag in ("style", "title", "math") else []

    def handle_endtag(self, tag):
        self.inside = self.inside[:-1] if tag in self.inside else self.inside

    def handle_data(self, data):
        self.words += [] if self.inside else [data]


def text(page):
    return re.sub(r"\s+", " ", " ".join(Words(page).words))


def test_a_text_of_many_tags_is_shown_as_text():
    """Twenty thousand open tags took a minute; here the work is counted, not the time."""
    few, many = (clean_html("<b>" * count + "x", None) for count in (10, 20_000))
    assert "<b>" in few and "&lt;b&gt;" not in few
    assert "<b>" not in many and many.count("&lt;b&gt;") == 20_000
    assert clean_html("\\[" * 6000, None) == f"<pre>{chr(92)}[" + "\\[" * 5999 + "</pre>"
