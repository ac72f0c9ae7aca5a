"""README's headline is that of a figure, of the real model as soon as its matrix is there."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.headline import ROOT, headline, main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A README with marks, and the table of a figure."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "README.md").write_text(
        "above\n<!-- headline -->\nformer\n<!-- /headline -->\nbelow\n"
    )
    rows = [("nothing", "de", False, 0, 0.0, None), ("de", "de", True, 9, 0.5, 0.01)]
    rows += [("de", "nl", False, 9, 0.25, None), ("nl", "nl", True, 7, 0.1, 0.02)]
    rows += [("nl", "de", False, 7, 0.05, None)]
    columns = ["off", "read", "own", "neurons", "increase", "random"]
    table = tmp_path / "figures" / "perplexity_matrix-babel.csv"
    pd.DataFrame(rows, columns=columns).to_csv(table, index=False)
    return tmp_path


def test_the_headline_is_of_the_real_model_if_its_matrix_is_there(root: Path):
    figures = root / "figures"
    shipped = headline(figures).replace("\n", " ")
    assert "(figures/perplexity_matrix-babel.png)" in shipped
    assert "**0.3 nats** per token on average, on the other languages by **0.15**" in shipped
    assert shipped.endswith("as many random neurons off raise that language's by 0.015.")
    table = (figures / "perplexity_matrix-babel.csv").read_text()
    (figures / "perplexity_matrix-gemma.csv").write_text(table)
    real = headline(figures)
    assert "(figures/perplexity_matrix-gemma.png)" in real
    assert "In Gemma 3 270M" in real
    rates = {"LAPE neurons": (1.0, 0.5), "random neurons": (0.25, 0.0), "residual push": (1.0, 1.0)}
    rows = [(way, rate) for way, each in rates.items() for rate in each]
    steered = pd.DataFrame(rows, columns=["way", "rate"])
    steered.to_csv(figures / "language_switching-gemma.csv", index=False)
    pushed = headline(figures).replace("\n", " ")
    assert pushed.endswith("**75 %** of texts come out in their language, random neurons 12 %.")


def test_it_replaces_what_stands_between_the_marks(root: Path):
    main(root)
    text = (root / "README.md").read_text()
    assert text.startswith("above\n<!-- headline -->\n![")
    assert text.endswith("\n<!-- /headline -->\nbelow\n")
    assert "former" not in text
    main(root)
    assert (root / "README.md").read_text() == text
    (root / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="marks of 'headline' occur 0 times"):
        main(root)


def test_the_readme_has_the_headline_of_the_figure():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert headline(ROOT / "figures") in text, "run python -m experiments.headline"
