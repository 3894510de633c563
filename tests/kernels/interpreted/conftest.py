"""Run with TRITON_INTERPRET=1, which must be set before Triton is imported: `test_interpreted.py` sees to both."""

import importlib.util
import os
from pathlib import Path

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before pytest starts"

_spec = importlib.util.spec_from_file_location("exact_interpreter", Path(__file__).with_name("exact_interpreter.py"))
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.install()
