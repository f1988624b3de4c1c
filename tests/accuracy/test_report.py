"""docs/accuracy.md says what the code and the measurements of this checkout give."""

from __future__ import annotations

from tests.accuracy import report


def test_the_committed_document_is_current():
    assert report.DOCUMENT.read_text("utf-8") == report.document(), "make accuracy"
