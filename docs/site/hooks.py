"""What mkdocs does beside its own: pages from the root, links that lead out of docs/, reports.

The pages are written to be read in the repository. There ``../CONTRIBUTING.md`` and
``../gam_scale/schedule.py`` are links; on the site the first is a page and the second a name.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every report that a command wrote under docs/ is a page of the last part of the site."""
    docs = Path(config.docs_dir)
    reports = sorted(page.relative_to(docs) for page in docs.rglob("report.md"))
    pages: list[Any] = [{page.parent.as_posix(): page.as_posix()} for page in reports]
    assert config.nav is not None
    config.nav.append({"Reports": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand in the repository's root, and the notebook as one to read."""
    for name, page in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=as_in_docs(text)))
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    files.append(File.generated(config, "quickstart_notebook.md", content=as_page(notebook)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to what the site has not, rewritten."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        if not target.startswith("../"):
            return link[0]
        path = (folder / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which is not there")
        inside = path.relative_to(ROOT).as_posix()
        if inside in FROM_ROOT:
            return f"[{label}]({FROM_ROOT[inside]}{anchor})"
        return link[0] if inside.startswith("docs/") else label

    return LINK.sub(rewritten, markdown)


def as_in_docs(text: str) -> str:
    """A page of the root as if it stood in docs/: its links lead from there."""

    def moved(link: re.Match[str]) -> str:
        target = link[2]
        if re.match(r"[a-z]+:", target):
            return link[0]
        target = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
        return f"[{link[1]}]({target}{link[3] or ''})"

    return LINK.sub(moved, text).replace("](docs/", "](")


def as_page(notebook: dict[str, Any]) -> str:
    """A notebook's text, and its code in fences; it is stored without outputs."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"
