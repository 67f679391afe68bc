"""The pages of the API, made of docstrings; needs ``pip install -e ".[docs]"``.

    python tests/api_docs.py runs/api

Begin at runs/api/loong_jax.html. What pdoc warns of is printed, and the exit code is then 1.
"""

import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pdoc

import loong_jax

# "jaxtyping.Float[jaxlib._jax.Array, 'b t n h']" is read more easily as "Float[Array, 'b t n h']".
_DOT = r'(?:</span><span class="o">)?\.(?:</span><span class="n">)?'
_MODULES = re.compile(rf"\b(?:jaxtyping|jaxlib{_DOT}_jax){_DOT}(?=[A-Z])")


def main() -> int:
    [folder] = map(Path, sys.argv[1:])
    for name in loong_jax.__all__:  # loaded on first use, which pdoc does not wait for
        setattr(loong_jax, name, getattr(loong_jax, name))
    loong_jax.Pipeline.__call__.__doc__ += "\n\n@public"  # without which pdoc leaves it out, as all of such names
    loong_jax.__all__ += [module.name for module in pkgutil.iter_modules(loong_jax.__path__)]
    pdoc.render.configure(docformat="google", footer_text=f"loong_jax {loong_jax.__version__}")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pdoc.pdoc("loong_jax", output_directory=folder)
    for page in folder.rglob("*.html"):
        page.write_text(_MODULES.sub("", page.read_text(encoding="utf-8")), encoding="utf-8")
    for warning in found:
        print(f"{warning.category.__name__}: {warning.message}", file=sys.stderr)
    return int(len(found) > 0)


if __name__ == "__main__":
    sys.exit(main())
