"""What the Markdown files say about the code is true: files, names, flags, links and commands are there."""
import ast
import importlib
import re

import pytest

from sre2l.run.paths import ROOT

MARKDOWN = sorted(path for pattern in ("*.md", "docs/*.md", "*/README.md") for path in ROOT.glob(pattern))
README = ROOT / "README.md"
STAGES = {"squeeze": "squeeze.squeeze", "recover": "recover.recover", "relabel": "relabel.relabel",
          "validate": "validate.train"}
FLAG = r"(?<![\w-])--?\w[\w-]*"
FOREIGN_MODULES = {"pip", "pytest", "venv"}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def rows_of_contributing():
    """(files, names) of every row of the table 'To change X, edit Y'."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("| to change | edit | there |")[2].partition("\n\n")[0]
    rows = []
    for line in table.splitlines()[2:]:
        _, _, files, names, _ = (cell.strip() for cell in line.split("|"))
        rows.append((files.split(", "), names.split(", ")))
    return rows


def defined_names(path):
    """The functions, classes and methods of a module, and the names that it assigns at its top."""
    tree = ast.parse(path.read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(path):
    """The names by which GitHub links to the headings of a file."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("files, names", rows_of_contributing(), ids=str)
def test_the_table_of_contributing_names_what_is_there(files, names):
    found = set()
    for file in files:
        assert (ROOT / file).is_file(), f"{file} is gone"
        found |= defined_names(ROOT / file)
    assert set(names) <= found, f"{', '.join(files)}: no {', '.join(set(names) - found)}"


def test_contributing_says_where_to_change_the_method_and_the_readme_is_short():
    assert len(rows_of_contributing()) >= 12
    assert len(README.read_text().split()) <= 1800


@pytest.mark.parametrize("stage", STAGES)
def test_the_page_of_a_stage_is_one_screen_and_the_flags_on_it_are_known(stage, capsys):
    page = (ROOT / stage / "README.md").read_text()
    assert len(page.splitlines()) <= 60
    table = page.partition("| flag | meaning |")[2].partition("\n\n")[0]
    first_column = "\n".join(line.split(" | ")[0] for line in table.splitlines())
    named = set(re.findall(FLAG, first_column))

    with pytest.raises(SystemExit):
        importlib.import_module(STAGES[stage]).get_args(["--help"])
    known = set(re.findall(FLAG, capsys.readouterr().out))
    assert len(named) >= 8 and named <= known, f"unknown: {named - known}"


def test_the_tree_of_the_readme_names_what_is_there():
    """Names before the first word of a line's text; an indented folder lies in the one above it."""
    block = README.read_text().partition("## Files")[2].split("```")[1]
    top = ROOT
    for line in block.strip().splitlines():
        parent = top if line.startswith(" ") else ROOT
        names = re.match(r"\s*((?:\S+ )*\S+?)\s\s", line)[1].split()
        for name in names:
            assert (parent / name).exists(), f"{name} is not in {relative(parent) or 'the root'}"
        if parent == ROOT:
            top = ROOT / names[0]
    folders = {relative(path.parent) for path in ROOT.glob("*/__init__.py")}
    assert all(f"{folder}/" in block for folder in folders), "a folder is missing from the tree"


@pytest.mark.parametrize("path", MARKDOWN, ids=relative)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", without_code(path.read_text())):
        target = next(filter(None, link))
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        assert goal.exists(), f"no {target}"
        assert not anchor or anchor in anchors(goal), f"no heading for {target}"


@pytest.mark.parametrize("path", MARKDOWN, ids=relative)
def test_commands_name_scripts_that_are_there(path):
    """`sh x.sh` from the root or from the folder of the page, `python3 -m module` from the root."""
    text = path.read_text()
    for script in re.findall(r"(?<![\w./-])sh ([\w./-]+\.sh)\b", text):
        assert (ROOT / script).is_file() or (path.parent / script).is_file(), f"no {script}"
    for module in re.findall(r"\bpython3? -m ([\w.]+\w)", text):
        if module.partition(".")[0] not in FOREIGN_MODULES:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"no module {module}"
