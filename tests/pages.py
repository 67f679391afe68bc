"""The Markdown pages of the repository, taken apart: blocks, prose, code spans, commands, links and headings."""

import functools
import re
from pathlib import Path

from commands import find_commands

ROOT = Path(__file__).parents[1]


class Page:
    """One page; what ``configs/claims.py`` writes and the changelog are none."""

    def __init__(self, path: Path):
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.name = str(path.relative_to(ROOT))
        # Kinds of block: bash is run, python is read as Python, and what has no language is a map of the code.
        self.blocks = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)
        self.prose = re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        self.spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]
        self.commands = find_commands(self.text)
        self.links = [link for link in re.findall(r"\]\(([^)\s]+)\)", self.prose) if "://" not in link]
        self.anchors = {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)}

    def linked(self) -> list["Page"]:
        """The pages that this one names, in its order."""
        paths = [_place(self, link) for link in self.links]
        return [read_page(path) for path in dict.fromkeys(paths) if path in PAGE_PATHS and path != self.path]

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name beside the page, in the package or in the repository."""
        return any((folder / name).exists() for folder in (self.path.parent, ROOT / "loong_jax", ROOT))


@functools.cache
def read_page(path: Path) -> Page:
    return Page(path)


def broken_links(page: Page) -> list[str]:
    """Links to what is not there, be it a file or a heading."""

    def is_broken(link: str) -> bool:
        path, (_, _, anchor) = _place(page, link), link.partition("#")
        return not path.exists() or (anchor != "" and anchor not in read_page(path).anchors)

    return [link for link in page.links if is_broken(link)]


def _place(page: Page, link: str) -> Path:
    name = link.partition("#")[0]
    return (page.path.parent / name).resolve() if name else page.path


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _page_paths() -> list[Path]:
    folders = ("configs", "launch", "loong_jax")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.md")]
    return [ROOT / "README.md", *sorted(path for path in found if "assets" not in path.parts)]


PAGE_PATHS = _page_paths()
PAGES = [read_page(path) for path in PAGE_PATHS]
README = PAGES[0]
