"""docs/reference.md leaves nothing out and invents nothing."""

import ast
import re

from tests.contract import reference
from tests.contract.sources import ROOT, modules

EVENT = re.compile(
    r"(vm|host|snapshot|retention|operation|token|backup-file|transaction|spool|events|listener)\.[a-z]+(-[a-z]+)*"
)


def test_the_generated_parts_are_what_the_code_says() -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    assert reference.render(page) == page, "renew it with: python -m tests.contract.reference"


def test_every_event_type_has_its_line() -> None:
    told = {
        node.value
        for _, _, tree in modules("agent", "controller")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT.fullmatch(node.value)
    }
    listed = re.findall(r"^\| `([a-z-]+\.[a-z-]+)` \|", reference.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    # The types of libvirt's own domain events are made from its constants and occur nowhere as a whole.
    assert set(listed) == told | {"vm.defined", "vm.undefined", "vm.renamed"}


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\((docs/[^)#]+)\)", readme))
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == set()


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []
