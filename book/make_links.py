"""Write the repository's address into everything that needs it: `make links REPO=owner/name`.

pyproject.toml names the address. README, CITATION.cff and the notebooks follow it: links to Binder and Colab, and the
lines that clone the repository. As long as there is no address there are no such links. It needs Python alone.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Between lines with these words, in whichever form the file has comments, stands what is written here.
START, END = "links: made by `make links`", "end of links"
LAUNCH_CELL = "colab"  # a notebook's cell that installs the package on Colab
HOME = "/content/vilamp-lite"  # where it is cloned to on Colab

NEW_CELL = {"cell_type": "code", "execution_count": None, "id": LAUNCH_CELL, "metadata": {}, "outputs": []}
Notebook = dict[str, list[dict[str, object]]]


def checked(repo: str) -> str:
    """Take a repository's name on GitHub.

    Raises:
        ValueError: it is not of the form owner/name.
    """
    if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,39}(?<!-)/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}(?<!\.git)", repo):
        raise ValueError(f"REPO must be owner/name of a repository on GitHub, got {repo!r}")
    return repo


def repository(root: Path = ROOT) -> str | None:
    """The repository's owner and name in pyproject.toml, or None as long as it has no address."""
    urls = tomllib.loads((root / "pyproject.toml").read_text())["project"].get("urls", {})
    return urls["Repository"].removeprefix("https://github.com/") if "Repository" in urls else None


def launch_links(repo: str, notebook: str) -> tuple[str, str]:
    """Links that open a notebook on Binder and on Colab."""
    return (
        f"[Launch on Binder](https://mybinder.org/v2/gh/{repo}/HEAD?labpath=notebooks/{notebook})",
        f"[Open in Colab](https://colab.research.google.com/github/{repo}/blob/main/notebooks/{notebook})",
    )


def readme_lines(repo: str | None) -> str:
    """What the README says about where to get the repository."""
    if repo is None:
        return (
            "This repository has no public address yet: `make links REPO=owner/name` writes it into this page and the "
            "notebooks, with links to Binder and Colab.\n"
        )
    binder, colab = launch_links(repo, "01_frame_embedding.ipynb")
    name = repo.partition("/")[2]
    return (
        f"Get the repository with `git clone https://github.com/{repo}` and `cd {name}`, or open the first notebook "
        f"without installing anything: {binder} or {colab}.\n"
    )


def placed(text: str, content: str) -> str:
    """Put lines between a text's two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    marked = re.compile(rf"(^.*{re.escape(START)}.*\n)(?s:.*?)(^.*{END}.*$)", re.MULTILINE)
    text, count = marked.subn(lambda found: found[1] + content + found[2], text)
    if (count, text.count(START), text.count(END)) != (1, 1, 1):
        raise ValueError(f"it must hold a line with {START!r} and then one with {END!r}, once each")
    return text


def linked(text: str, repo: str | None, notebook: str) -> str:
    """A notebook's file with its launch links below the title and the cell for Colab behind it, or with neither."""
    content: Notebook = json.loads(text)
    banner, *cells = content["cells"]
    title, lines = "".join(banner["source"]).split("\n\n", 1)
    lines = re.sub(r"^\[Launch on Binder\]\(.*\n\[Open in Colab\]\(.*\n", "", lines)
    others = [cell for cell in cells if cell["id"] != LAUNCH_CELL]
    if repo is not None:
        lines = "".join(f"{link} ·\n" for link in launch_links(repo, notebook)) + lines
        # One that has run keeps its number.
        launch = next((cell for cell in cells if cell["id"] == LAUNCH_CELL), NEW_CELL)
        others.insert(0, launch | {"source": launch_code(repo).splitlines(keepends=True)})
    banner["source"] = f"{title}\n\n{lines}".splitlines(keepends=True)
    content["cells"] = [banner, *others]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def launch_code(repo: str) -> str:
    """What prepares Colab for a notebook."""
    return f"""\
# On Colab: fetch the repository and install the package. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    !test -d {HOME} || git clone -q --depth 1 https://github.com/{repo} {HOME}
    %run {HOME}/notebooks/colab.py"""


def pages(repo: str | None, root: Path = ROOT) -> dict[Path, str]:
    """Every file that depends on the address, with the content it must have.

    Args:
        repo: owner and name, or None for a repository without an address.
        root: the repository's folder.

    Raises:
        ValueError: a page has lost its markers.
    """
    url = f"https://github.com/{repo}"
    contents = {
        "pyproject.toml": f'Repository = "{url}"\n' if repo else "",
        "CITATION.cff": f'repository-code: "{url}"\n' if repo else "",
        "README.md": readme_lines(repo),
    }
    made = {}
    for name, content in contents.items():
        try:
            made[root / name] = placed((root / name).read_text(), content)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        made[path] = linked(path.read_text(), repo, path.name)
    return made


def main(repo: str, root: Path = ROOT) -> int:
    """Write the address into all pages; 2 and one line if it is not one."""
    try:
        made = pages(checked(repo), root)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in made.items():
        if path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(root))
    return 0


if __name__ == "__main__":
    sys.exit(main("".join(sys.argv[1:])))
