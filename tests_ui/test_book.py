"""The book that `make book` built, in Chromium: no broken link, no missing image, no error, no network."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import pytest
from conftest import read_log
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "runs" / "book" / "_build" / "html"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
# `python -m vilamp_lite` only starts the command.
MODULES = sorted(set((ROOT / "vilamp_lite").rglob("*.py")) - {ROOT / "vilamp_lite" / "__main__.py"})

# After MathJax has set the page: its links, and those that lead to nothing; anchors, images that show nothing, formulas
# that were not understood.
PAGE = """
    const done = arguments[0];
    for (const image of document.images) image.loading = 'eager';
    const math = document.querySelector('.math') ? window.MathJax.startup.promise : Promise.resolve();
    math.then(() => Promise.all([...document.images].map(image => image.decode().catch(() => null)))).then(() => done({
        links: [...document.querySelectorAll('a[href]')].map(link => link.href),
        anchors: [...document.querySelectorAll('[id]')].map(element => element.id),
        dead: [...document.querySelectorAll('span.xref')].filter(s => !s.closest('a')).map(s => s.textContent),
        missing: [...document.images].filter(image => !image.naturalWidth).map(image => image.src.slice(0, 200)),
        wrong: [...document.querySelectorAll('mjx-merror')].map(formula => formula.textContent),
        unset: [...document.querySelectorAll('.math')].filter(f => !f.querySelector('mjx-container')).length,
    }));
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def _there_is_a_book() -> None:
    assert (BOOK / "index.html").exists(), "there is no book: run `make book` first"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The book, served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=BOOK))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def foreign(asked: list[str], home: str) -> list[str]:
    return [url for url in asked if not url.startswith((home, "data:", "blob:"))]


@pytest.mark.timeout(1800)
def test_every_page_is_whole_and_every_link_arrives(browser: Chrome, address: str) -> None:
    faults, anchors, links = [], {}, []
    read_log(browser)
    for file in sorted(BOOK.rglob("*.html")):
        if file.name == "index.html" or "_static" in file.relative_to(BOOK).parts:  # index.html leads to README.html
            continue
        url = f"{address}/{file.relative_to(BOOK).as_posix()}"
        browser.get(url)
        page = browser.execute_async_script(PAGE)
        complaints, asked = read_log(browser)
        found = {**page, "complaints": complaints, "asked a network for": foreign(asked, address)}
        anchors[url] = found.pop("anchors")
        links += [(url, link) for link in found.pop("links")]
        faults += [f"{url}: {what}: {which}" for what, which in found.items() if which]
    for page, link in links:
        target, anchor = urldefrag(link)
        if not target.startswith(address):
            # Others' pages can't be asked without a network.
            known = urlsplit(link).scheme in ("https", "http", "mailto")
            faults += [] if known else [f"{page} links to {link}"]
        elif target in anchors:
            faults += [] if not anchor or anchor in anchors[target] else [f"{page} links to {link}: no such place"]
        elif not (BOOK / urlsplit(target).path.lstrip("/")).is_file():
            faults.append(f"{page} links to {link}: no such file")
    assert not faults, "\n".join(sorted(set(faults)))


def test_everything_is_in_the_book(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/index.html")
    WebDriverWait(browser, 60).until(lambda browser: browser.current_url.endswith("/README.html"))
    navigation = browser.find_elements(By.CSS_SELECTOR, "nav.bd-links a")
    pages = {link.get_attribute("href").removeprefix(f"{address}/") for link in navigation}
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    wanted = {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} | {f"book/modules/{name}.html" for name in modules}
    wanted |= {f"book/{path.stem}.html" for path in (ROOT / "book").glob("*.md")}
    wanted |= {"data/vilamp-miniature/README.html", "notebooks/assignments/README.html"}
    assert not wanted - pages
    for path in NOTEBOOKS:
        browser.get(f"{address}/notebooks/{path.stem}.html")
        assert browser.find_elements(By.CSS_SELECTOR, ".cell_output img"), path.stem
    browser.get(f"{address}/book/modules/vilamp_lite.keyframes.html")
    assert "max_keyframes" in browser.find_element(By.ID, "vilamp_lite.keyframes.select_keyframes").text


def test_search_finds(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/search.html?q=redundancy")
    glossary = (By.CSS_SELECTOR, "#search-results li a[href*='glossary']")  # results come one after another
    WebDriverWait(browser, 60).until(lambda browser: browser.find_elements(*glossary), "the glossary is not found")


def test_it_opens_without_a_server(browser: Chrome) -> None:
    read_log(browser)
    page = BOOK / "notebooks" / f"{NOTEBOOKS[0].stem}.html"
    browser.get(page.as_uri())
    seen = browser.execute_async_script(PAGE)
    complaints, asked = read_log(browser)
    assert not complaints
    assert not foreign(asked, BOOK.as_uri())
    assert seen["links"]
    assert not seen["missing"]
    assert not seen["unset"]
