"""The documentation: every Python block runs, page by page; commands and links exist; the site's list is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fusedact import lab

ROOT = Path(__file__).parent.parent
yaml = pytest.importorskip("yaml")
if not (ROOT / "docs" / "index.md").exists():
    pytest.skip("not in the source tree", allow_module_level=True)
MADE = {"lab", "gallery"}  # by `make docs`
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(line, text) of each code block in one of the languages."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n"), found[2]) for found in BLOCK.finditer(text) if found[1] in languages
    ]  # fmt: skip


WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, as a reader would type them; what they assert holds."""
    monkeypatch.chdir(tmp_path)
    from fusedact import memory

    limit = memory.stats().limit_bytes
    space: dict[str, Any] = {"__name__": "page"}
    try:
        for line, text in blocks(page, "python"):
            code = compile("\n" * line + text, str(page), "exec")  # so that an error names the page's own line
            exec(code, space)
    finally:
        memory.set_limit(limit)


def test_the_pages_have_code() -> None:
    """Were the pattern above wrong, every test of it would pass."""
    assert {"README.md", "index.md", "monitor.md", "migrating.md", "numerics.md", "faq.md", "lab.md"} <= {
        page.name for page in WITH_CODE
    }
    for page in PAGES:
        assert page.read_text().count("```") % 2 == 0, f"{page.name} has a fence too many, or too few"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    from fusedact.cli import app

    known = {
        command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands
    }
    named = set(re.findall(r"python -m fusedact ([\w-]+)", page.read_text()))
    assert named <= known, f"{page.name} names {named - known}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {target for _, text in blocks(page, "sh") for target in re.findall(r"^make ([a-z-]+)", text, re.M)}
    assert named <= targets, f"{page.name} names {named - targets}"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_links_between_pages_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        if target.split("/")[0] == "gallery" and target == "gallery/index.md":
            continue
        if target.startswith("lab/"):
            assert Path(target).stem in lab.EXPERIMENTS, f"{page.name} links to {target}"
        else:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_navigation_is_complete() -> None:
    """Every page and every experiment is in it."""

    listed: set[str] = set()

    def walk(entry: Any) -> None:
        if isinstance(entry, str):
            listed.add(entry)
        for each in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            walk(each)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert {f"lab/{name}.md" for name in lab.EXPERIMENTS} <= listed
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    written = {path for path in written if path.split("/")[0] not in MADE}
    assert written == {path for path in listed if path.split("/")[0] not in MADE}
