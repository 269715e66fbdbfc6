"""The README's gallery: a figure for every notebook, with words, as it is drawn today."""

from html import escape

import pytest

from adadfq_lab.authoring import build as course
from adadfq_lab.authoring import gallery

README = (gallery.ROOT / "README.md").read_text(encoding="utf-8")
PART = README.partition(gallery.BEGIN)[2].partition(gallery.END)[0]
FILES = {path.stem: path for path in (gallery.ROOT / "docs" / "gallery").iterdir()}


def test_every_picture_is_committed_small_and_shown():
    """One file of at most 60 kB for each picture, no others, each shown in the README under its notebook's name."""
    assert FILES.keys() == gallery.PICTURES.keys() <= {path.stem for path in course.sources()}
    for name, path in FILES.items():
        assert path.stat().st_size < 60_000
        assert f'src="docs/gallery/{path.name}"' in PART
        assert f'href="notebooks/{name}.ipynb"' in PART


@pytest.mark.parametrize("name", [name for name in gallery.PICTURES if name != "02_quantization"])  # that one is measured anew
def test_picture_shows_what_is_recorded(name):
    """Drawn again, a picture has the README's words; a chart carries them as its label, and its lines are finite."""
    one = gallery.PICTURES[name]()
    assert len(one.alt) > 40
    assert f'alt="{escape(one.alt)}"' in PART
    assert escape(one.says) in PART
    if one.kind == "svg":
        text = one.data.decode()
        assert escape(one.alt) in text
        assert "nan" not in text
        assert "currentColor;" not in text.partition("<defs>")[0], "a file of its own has no page to take a colour from"


def test_the_readme_is_renewed_in_place(tmp_path, monkeypatch):
    """The command writes the files and the part between the marks, twice the same, and leaves the rest of the README."""
    monkeypatch.setattr(gallery, "PICTURES", {"06_the_band": gallery.band})
    (tmp_path / "README.md").write_text(f"before\n{gallery.BEGIN}\nold\n{gallery.END}\nafter\n", encoding="utf-8")
    gallery.main(tmp_path)
    once = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert once.startswith(f"before\n{gallery.BEGIN}\n<table>") and once.endswith(f"</table>\n{gallery.END}\nafter\n")
    assert "old" not in once
    gallery.main(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == once
    assert (tmp_path / "docs" / "gallery" / "06_the_band.svg").read_bytes().startswith(b"<svg ")
