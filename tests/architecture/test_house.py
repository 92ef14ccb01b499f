"""The house: who may import whom, and what a module may not be called or do."""

import ast
import importlib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src" / "thalweg"

# From the ground up. A module imports lower floors and its own, never a higher one.
FLOORS = (
    {"errors", "version", "progress", "first_use"},
    {"rng", "estimates"},
    {"report"},
    {"records"},
    {"kernels", "completion"},
    {"problem"},
    {"curvature"},
    {"optim", "landscape"},
    {"training"},
    {"diagnosis"},
    {"studies"},
    {"integrations"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# Rooms on one floor do not need each other, and these two must not be needed by the floors above them
# except through the top.
ALONE = {"kernels", "completion"}

# Where a third-party package may be imported; a package that is not listed may be imported nowhere.
THIRD_PARTY = {
    "torch": {"rng", "records", "problem", "curvature", "optim", "landscape", "training", "diagnosis", "cli"}
    | {"kernels", "completion", "studies"},
    "numpy": {"estimates", "records", "problem", "curvature", "diagnosis", "report", "landscape", "training"}
    | {"kernels", "completion", "studies", "cli"},
    "scipy": {
        "estimates",
        "curvature",
        "problem",
        "diagnosis",
        "landscape",
        "kernels",
        "completion",
        "studies",
    },
    "sklearn": {"problem", "kernels", "completion"},
    "numba": {"kernels", "completion"},
    "threadpoolctl": {"completion"},
    "llvmlite": {"kernels"},  # what numba itself speaks
    "safetensors": {"problem"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "rich": {"report", "cli", "progress"},
    "click": {"cli"},
    # Accepted where people have them, imported where they are asked for, needed by nobody.
    "pandas": {"completion", "training", "studies"},
    "dask": {"kernels", "studies", "cli"},
    "distributed": {"kernels", "studies", "cli"},
}
# Closer fences inside a room.
WITHOUT_TORCH = {"cli/main.py", "cli/__init__.py", "diagnosis/rules.py", "diagnosis/verdict.py"}
WITHOUT_TORCH |= {"diagnosis/readings.py", "diagnosis/missing.py"}
WITHOUT_PROBLEM = {"curvature/lanczos.py", "curvature/operators.py", "curvature/certificate.py"}
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}
# module.attribute that changes the user's process or runs code from files.
BANNED = {
    "torch.manual_seed",
    "torch.set_default_dtype",
    "torch.seed",
    "numpy.random.seed",
    "np.random.seed",
    "random.seed",
    "pickle.load",
    "pickle.loads",
    "joblib.load",
}


def modules(root: Path = ROOT) -> list[Path]:
    return sorted(root.rglob("*.py"))


def room(path: Path, root: Path = ROOT) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """All absolute names that a module imports, those inside functions and TYPE_CHECKING included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def upward(root: Path) -> list[str]:
    bad = []
    for path in modules(root):
        here = room(path, root)
        if here == "__init__":  # the facade names everything and imports it only when it is used
            continue
        for name in imports(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] != "thalweg" or len(parts) < 2 or parts[1] not in LEVEL:
                continue
            there = parts[1]
            if there != here and (LEVEL[there] >= LEVEL[here] or (there in ALONE and here != "cli")):
                bad.append(f"{path.relative_to(root)} ({here}) imports {name}")
    return bad


def cycles(root: Path) -> list[list[str]]:
    """Return the cycles among modules, by depth-first search."""
    names = {".".join(("thalweg", *p.relative_to(root).with_suffix("").parts)): p for p in modules(root)}
    edges = {
        name: {other for other in imports(ast.parse(path.read_text())) if other in names and other != name}
        for name, path in names.items()
        if name != "thalweg.__init__"
    }
    found, done = [], set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(trail[trail.index(name) :])
            return
        if name in done:
            return
        for other in edges.get(name, ()):
            visit(other, [*trail, name])
        done.add(name)

    for name in edges:
        visit(name, [])
    return found


def foreign(root: Path) -> list[str]:
    import sys

    bad = []
    for path in modules(root):
        here, where = room(path, root), path.relative_to(root).as_posix()
        for name in imports(ast.parse(path.read_text())):
            top = name.split(".")[0]
            if top in {"thalweg", "__future__", ""} or top in sys.stdlib_module_names:
                continue
            if here not in THIRD_PARTY.get(top, set()) or (top == "torch" and where in WITHOUT_TORCH):
                bad.append(f"{where} imports {name}")
    return bad


def test_imports_go_down_the_house_only():
    assert upward(ROOT) == []


def test_no_module_imports_itself_through_others():
    assert cycles(ROOT) == []


def test_third_party_packages_stay_on_their_floors():
    assert foreign(ROOT) == []


def test_lanczos_knows_neither_model_nor_data():
    for where in WITHOUT_PROBLEM:
        names = imports(ast.parse((ROOT / where).read_text()))
        assert not [name for name in names if name.startswith("thalweg.problem")], where


def test_every_room_has_a_floor():
    rooms = {room(path) for path in modules()} - {"__init__"}
    assert rooms <= LEVEL.keys()


def hidden(package: str) -> list[str]:
    """Names of a package that importing a module of it would hide."""
    homes = importlib.import_module(package)._HOMES
    below = {path.stem for path in (ROOT / Path(*package.split(".")[1:])).iterdir()}
    return sorted(name for name, home in homes.items() if name in below and home != name)


@pytest.mark.parametrize("package", ["thalweg", "thalweg.optim", "thalweg.kernels", "thalweg.completion"])
def test_no_module_hides_a_name_of_its_package(package):
    assert hidden(package) == []
    loaded = importlib.import_module(package)
    for name in loaded.__all__:
        assert not isinstance(getattr(loaded, name), types.ModuleType) or loaded._HOMES.get(name) == name


def test_names_say_something():
    assert [p for p in modules() if SAYS_NOTHING & set(p.relative_to(ROOT).with_suffix("").parts)] == []


def test_files_and_functions_stay_readable():
    long_files = {p.name: n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert long_files == {}
    long_functions = {
        f"{path.name}:{node.name}": length
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or 0) - (node.body[1].lineno if len(node.body) > 1 else node.lineno))
        > 70
    }
    assert long_functions == {}


def test_nothing_touches_global_randomness_or_runs_code_from_files():
    bad = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in BANNED:
                bad.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = [k for k in node.keywords if k.arg == "weights_only"]
                if not safe or ast.unparse(safe[0].value) != "True":
                    bad.append(f"{path.name}:{node.lineno} torch.load without weights_only=True")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"eval", "exec", "print"}:
                bad.append(f"{path.name}:{node.lineno} {ast.unparse(node.func)}")
    assert bad == []


def test_sources_in_docstrings_are_in_the_bibliography():
    import re

    entries = re.findall(r"@\w+\{(\w+),", (ROOT / "references.bib").read_text())
    assert sorted(set(entries)) == sorted(entries), "two sources of one key"
    known = set(entries)
    cited = {
        key for path in modules() for key in re.findall(r"\[([a-z]+[12][0-9]{3}[a-z]?)\]", path.read_text())
    }
    assert cited - known == set()
    assert known - cited == set()


class TestTheChecksCanFail:
    @pytest.fixture
    def house(self, tmp_path):
        for name, text in {
            "errors.py": "",
            "curvature/lanczos.py": "from thalweg.diagnosis import rules\nimport requests\n",
            "diagnosis/rules.py": "import thalweg.curvature.lanczos\nimport torch\n",
        }.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    def test_an_upward_import_is_seen(self, house):
        assert any("curvature/lanczos.py" in line for line in upward(house))

    def test_a_cycle_is_seen(self, house):
        assert cycles(house) != []

    def test_a_foreign_package_and_a_fenced_one_are_seen(self, house):
        seen = foreign(house)
        assert any("requests" in line for line in seen)
        assert any("rules.py imports torch" in line for line in seen)
