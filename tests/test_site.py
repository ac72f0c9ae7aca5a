"""The site that `make docs` builds: equal pages from equal text, and no request leaves a page."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.browser import open_page

ROOT = Path(__file__).parents[1]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not MKDOCS.is_file(), reason="run `make docs` first"),
]


def build(folder: Path) -> Path:
    quiet = {"SOURCE_DATE_EPOCH": "0", "NO_MKDOCS_2_WARNING": "1"}
    command = [str(MKDOCS), "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_text_gives_the_same_site(site: Path, tmp_path: Path):
    assert files(build(tmp_path / "again")) == files(site)


def test_no_page_loads_anything_from_elsewhere(site: Path):
    loads = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?https?:[^>]*>""")
    for path in site.rglob("*.html"):
        assert loads.findall(path.read_text(encoding="utf-8")) == [], path.name


def test_no_page_names_a_machine(site: Path):
    here = re.compile(rf"{re.escape(str(ROOT))}|/(?:home|root|work|tmp)/\w")
    for path in site.rglob("*.html"):
        assert here.findall(path.read_text(encoding="utf-8")) == [], path.name


def test_the_name_of_a_token_is_text(site: Path):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"</?(?:s|bos|eos|pad|unk)>", text), path.name


def test_a_number_and_its_percent_sign_stay_on_one_line(site: Path):
    text = (site / "findings.html").read_text(encoding="utf-8")
    assert re.search(r"\d\N{NO-BREAK SPACE}%", text)
    assert not re.search(r"\d %", re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL))


def test_names_commands_and_examples_have_pages(site: Path):
    page = (site / "reference" / "interp.html").read_text(encoding="utf-8")
    assert 'id="interp.select_by_entropy"' in page
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page  # an example is shown as a session
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "--until-stable" in commands
    notebook = (site / "notebooks" / "00_from_a_cache.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<img [^>]*00_from_a_cache-", notebook)) >= 2


def test_the_search_works_in_a_page_that_was_opened_as_a_file(site: Path):
    with open_page(site / "index.html", viewport={"width": 1280, "height": 900}) as (page, seen):
        field = page.locator("input.md-search__input")
        field.click()  # the index is read now, and only what is typed after that is searched for
        page.get_by_text("Type to start searching").wait_for(state="attached", timeout=90_000)
        field.press_sequentially("jackknife")
        page.locator(".md-search-result__link").first.wait_for(timeout=90_000)
        assert "uncertainty.html" in page.locator(".md-search-result__list").inner_html()
    assert seen.errors == []
    assert [address for address in seen.requests if not address.startswith("file:")] == []
