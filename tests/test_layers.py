"""The package's wings stand in layers: a module imports only from its own layer and from those below."""
import ast

from sre2l.run.paths import ROOT

LAYERS = (
    ("sre2l.run",),
    ("sre2l.kernels",),
    ("sre2l.data",),
    ("sre2l.check",),
    ("sre2l.nets",),
    ("squeeze", "recover", "relabel", "validate"),
    ("report",),
    ("bench", "stress", "tests"))
OURS = {name.partition(".")[0] for layer in LAYERS for name in layer}


def layer_of(module):
    """-> the number of a module's layer, counted from below; None for a module that is not ours."""
    if module == "sre2l":
        return 0
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def imported(path):
    """Yield (line, name) of every import in a file, also in functions. `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward_imports(root):
    """-> 'file:line imports module' for each import from a higher layer under `root`."""
    found = []
    for path in sorted(path for name in OURS for path in (root / name).rglob("*.py")):
        file = path.relative_to(root).as_posix()
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        own = layer_of(module)
        assert own is not None, f"{file} belongs to no layer"
        for line, name in imported(path):
            theirs = layer_of(name)
            if theirs is not None and theirs > own:
                found.append(f"{file}:{line} imports {name}")
    return found


def test_no_module_imports_from_a_layer_above():
    assert upward_imports(ROOT) == []


def test_the_chain_and_the_page_of_a_run_import_nothing_that_reads_results():
    """A copy of the code without results/ runs them."""
    todo = ["report.chain", "report.page"]
    found = set()
    while todo:
        name = todo.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name.startswith("report.") and name not in found and path.exists():
            found.add(name)
            todo += [other for _, other in imported(path)]
    assert "report.curves" in found and "report.rows" not in found


def test_an_upward_import_is_found(tmp_path):
    """In every spelling, and inside a function."""
    spellings = ("import sre2l.data.resize", "from sre2l.data import resize", "from sre2l import data",
                 "import relabel.check as check", "def run():\n    from sre2l.data.resize import crop")
    (tmp_path / "sre2l" / "run").mkdir(parents=True)
    for text in spellings:
        (tmp_path / "sre2l" / "run" / "files.py").write_text(text + "\n")
        assert upward_imports(tmp_path)
