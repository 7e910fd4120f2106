import json
import subprocess
import sys

import pytest

import moe_search as ms


def python(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_no_trainer_is_loaded_before_it_is_asked_for():
    loaded = python(
        "import json, sys, moe_search; moe_search.integrations; moe_search.PermutationSearch;"
        "print(json.dumps([name for name in ('lightning', 'transformers') if name in sys.modules]))"
    )
    assert loaded == []


@pytest.mark.parametrize(("name", "extra"), [("LightningSearch", "lightning"), ("TransformersSearch", "transformers")])
def test_a_missing_extra_is_named(name, extra):
    text = python(
        f"import json, sys, moe_search as ms; sys.modules['{extra}'] = None\n"
        f"try: ms.integrations.{name}\n"
        "except ImportError as error: print(json.dumps(str(error)))"
    )
    assert text.endswith(f'pip install "moe-search[{extra}]"')


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'moe_search\.integrations' has no attribute 'Keras'"):
        _ = ms.integrations.Keras
