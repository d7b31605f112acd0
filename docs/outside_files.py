"""Files of the repository outside of this folder, for the site.

MkDocs knows only the files below `docs`. Links that work in the repository work on the site too: a
text file that a page links to is copied, and so is a picture.
"""

import os
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from esvit_hf.pretraining.recipe_help import recipe_help

sys.path.append(str(Path(__file__).parent))
from notebooks import FOLDER, render  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = {
    "contributing/development.md": ROOT / "CONTRIBUTING.md",
    "contributing/changes.md": ROOT / "CHANGELOG.md",
    "contributing/security.md": ROOT / "SECURITY.md",
}
"""Pages of the site that are kept elsewhere, by their places on the site."""
LINK = re.compile(
    r"(?P<text>!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?P<target>[^)#\s:]+)(?P<anchor>#[^)]*)?\)"
)

RECIPE_HELP = "<!-- help of esvit pretrain -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are kept elsewhere."""
    for place, path in PAGES.items():
        files.append(File.generated(config, place, content=path.read_text(encoding="utf-8")))
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        text, pictures = render(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
        files.remove(files.get_file_from_path(f"notebooks/{notebook.name}"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside of this folder into links to their copies on the site."""
    place = page.file.src_uri
    path = PAGES.get(place, Path(config.docs_dir) / place)
    kept = {source: page for page, source in PAGES.items()}

    def replace(link: re.Match[str]) -> str:
        if os.path.normpath(Path(place).parent / link["target"]) in files.src_uris:
            return link[0]
        target = Path(os.path.normpath(path.parent / link["target"]))
        if not target.exists():
            raise PluginError(f"{place} links to {link['target']}, which does not exist")
        if target in kept:
            uri = kept[target]
        elif target.is_relative_to(config.docs_dir):
            uri = target.relative_to(config.docs_dir).as_posix()
        elif target.is_dir():
            return link["text"][1:-1]
        else:
            uri = _copy(target, config, files)
        relative = os.path.relpath(uri, Path(place).parent)
        return f"{link['text']}({relative}{link['anchor'] or ''})"

    return LINK.sub(replace, markdown).replace(RECIPE_HELP, f"```text\n{recipe_help()}\n```")


def _copy(target: Path, config: MkDocsConfig, files: Files) -> str:
    """Add a copy of a file to the site; its address there."""
    uri = f"repository/{target.relative_to(ROOT).as_posix()}"
    # A page of Markdown would be built, with links that lead nowhere.
    uri += ".txt" if target.suffix == ".md" else ""
    if uri not in files.src_uris:
        files.append(File.generated(config, uri, abs_src_path=str(target)))
    return uri
